"""Zennit's own attributors and composites, wherever a method's name is taken: held against Zennit by hand, float64."""

import copy
import json

import numpy as np
import pytest
import torch
from zennit.attribution import Gradient as ZennitGradient
from zennit.attribution import IntegratedGradients, Occlusion, SmoothGrad
from zennit.canonizers import CompositeCanonizer, NamedMergeBatchNorm, SequentialMergeBatchNorm
from zennit.composites import (
    EpsilonAlpha2Beta1,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    ExcitationBackprop,
    GuidedBackprop,
    LayerMapComposite,
    MixedComposite,
    NameLayerMapComposite,
    NameMapComposite,
)
from zennit.core import Composite
from zennit.layer import Sum
from zennit.rules import Epsilon, Gamma, Norm, Pass, ZBox, ZPlus
from zennit.types import Activation, AvgPool, Convolution, Linear

import selrel_zennit as sr
from networks import snapshot
from residual import by_hand, residual
from selrel_zennit.attribution import Gradient
from selrel_zennit.canonizers.batch_norm import VideoCanonizer
from selrel_zennit.pipeline import explain_video

TARGET = 3
HOT = sr.one_hot([TARGET, TARGET], 5).double()
RULES = [(Activation, Pass()), (AvgPool, Norm()), (Convolution, Gamma(0.5)), (Linear, Epsilon())]


@pytest.fixture(scope="module")
def model():
    return residual()


@pytest.fixture(scope="module")
def clip(model):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, *model.spec.shape, generator=generator, dtype=torch.float64)


def attributed(attributor, clip, attr_output=HOT):
    """What Zennit itself gives: relevance [B,T,H,W], channels summed."""
    with attributor:
        return attributor(clip.clone(), attr_output)[1].detach().sum(1).numpy()


def close(relevance, expected, tolerance=1e-6):
    """Explanations are float32."""
    assert np.abs(expected).max() > 0
    assert np.abs(relevance - expected).max() < tolerance * np.abs(expected).max()


# --- attributors ---


class TimesInput(ZennitGradient):
    """A user's own subclass."""

    def forward(self, input, attr_output_fn):
        output, gradient = super().forward(input, attr_output_fn)
        return output, gradient * input


ATTRIBUTORS = {
    "gradient": lambda model: ZennitGradient(model),
    "composite": lambda model: ZennitGradient(model, EpsilonPlus()),
    "smoothgrad": lambda model: SmoothGrad(model, noise_level=0.2, n_iter=3),
    "smoothgrad of a composite": lambda model: SmoothGrad(model, EpsilonPlus(), n_iter=2),
    "integrated": lambda model: IntegratedGradients(model, n_iter=3, baseline_fn=lambda clip: clip * 0.1),
    "own": TimesInput,
}


@pytest.mark.parametrize("name", ATTRIBUTORS)
def test_an_attributor_explains_what_zennit_by_hand_does(name, model, clip):
    before = snapshot(model, clip)
    torch.manual_seed(0)
    explanation = sr.explain(model, clip, ATTRIBUTORS[name](model), TARGET)
    reference = ATTRIBUTORS[name](by_hand(model))
    torch.manual_seed(0)
    close(explanation.relevance, attributed(reference, clip))
    assert np.allclose(explanation.logits, model(clip))
    assert explanation.target.tolist() == [TARGET, TARGET]
    assert snapshot(model, clip) == before


def test_occlusion_explains_the_targets_logit(model, clip):
    """Zennit's wants the output weighted, not the weights: with these alone it would count windows."""
    options = {"window": (2, 4, 4), "stride": (2, 4, 4)}
    explanation = sr.explain(model, clip, Occlusion(model, **options), TARGET)
    expected = attributed(Occlusion(by_hand(model), **options), clip, lambda logits: logits * HOT)
    close(explanation.relevance, expected)
    assert len(np.unique(explanation.relevance[0])) > 4


def test_one_class_is_explained_at_all_points(clip):
    """The top class of the clip, not of each noisy copy, of which most have another."""
    model, noise = residual(seed=3), {"noise_level": 0.3, "n_iter": 8}
    top = sr.one_hot(int(model(clip[:1]).argmax()), 5).double()
    reference = SmoothGrad(by_hand(model), **noise)
    torch.manual_seed(0)
    explanation = sr.explain(model, clip[:1], SmoothGrad(model, **noise))
    torch.manual_seed(0)
    close(explanation.relevance, attributed(reference, clip[:1], top))
    sigma = 0.3 * (clip[0].max() - clip[0].min())
    torch.manual_seed(0)
    noisy = [int(model(clip[:1] + torch.randn_like(clip[:1]) * sigma).argmax()) for _ in range(7)]
    assert noisy.count(int(explanation.target[0])) < 7


@pytest.mark.parametrize("name", ATTRIBUTORS)
def test_selective_selects_it(name, model, clip):
    selection = sr.MotionSelection(n_sigma=1)
    torch.manual_seed(0)
    with sr.Selective(ATTRIBUTORS[name](model), selection) as selective:
        logits, motion = selective(clip, HOT)
    by_zennit = ATTRIBUTORS[name](by_hand(model))
    torch.manual_seed(0)
    with by_zennit as reference:
        relevance = reference(clip.clone(), HOT)[1].detach()
    expected = selection(relevance)[0]
    assert torch.allclose(motion, expected, rtol=1e-7, atol=1e-12)
    assert not motion.requires_grad
    assert 0 < motion.count_nonzero() < motion.numel()
    assert torch.allclose(logits, model(clip))
    assert selective.info["model"] == "Residual"


def test_without_an_output_attribution_its_own_holds(model, clip):
    own = Occlusion(model, attr_output=lambda logits: logits * HOT, window=(2, 4, 4), stride=(2, 4, 4))
    expected = attributed(own, clip, None)
    close(sr.build_method(own, model)(clip)[1].sum(1).numpy(), expected)
    gradient = ZennitGradient(model, attr_output=HOT)
    close(sr.build_method(gradient, model)(clip)[1].sum(1).numpy(), attributed(gradient, clip, None))


def test_versus_compares_two_classes(model, clip):
    compared = sr.versus(model, clip, ZennitGradient(model, EpsilonPlus()), 3, 1)
    for side, target in ((compared.first, 3), (compared.second, 1)):
        hot = sr.one_hot([target, target], 5).double()
        close(side.relevance, attributed(ZennitGradient(by_hand(model), EpsilonPlus()), clip, hot))


@pytest.mark.parametrize("method", [EpsilonPlus(), "attributor"], ids=["composite", "attributor"])
def test_a_video_is_explained(method, model):
    model = copy.deepcopy(model).float()
    method = SmoothGrad(model, n_iter=1) if method == "attributor" else method
    frames = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    found = explain_video(model, frames, method, TARGET, all_clips=True)
    clips = np.concatenate([model.spec.clip(frames, start=start) for start in (0, 4)])
    double = by_hand(model.double())
    reference = ZennitGradient(double, method if isinstance(method, Composite) else None)
    close(found.explanation.relevance, attributed(reference, torch.from_numpy(clips).double()), 1e-4)
    assert json.loads(json.dumps(found.info)) == found.info


# --- composites ---

LOW, HIGH = -2.0, 3.0
CANONIZERS = {
    "none": lambda: None,
    "the video one": lambda: [VideoCanonizer()],
    "Zennit's": lambda: [SequentialMergeBatchNorm()],
    "Zennit's, inside another": lambda: [CompositeCanonizer([SequentialMergeBatchNorm()])],
    "Zennit's and the video one": lambda: [SequentialMergeBatchNorm(), VideoCanonizer()],
    "by name": lambda: [NamedMergeBatchNorm([(["conv"], "norm")])],
}


@pytest.mark.parametrize("canonizers", CANONIZERS)
@pytest.mark.parametrize("rules", ["with a rule for sums", "without"])
def test_canonizers_and_the_sums_rule_are_added_where_they_are_missing(canonizers, rules, model, clip):
    """Whatever stands there already: merged once, shared once, and the composite is left alone."""
    layer_map = [(Sum, Norm()), *RULES] if rules != "without" else RULES
    composite = LayerMapComposite(layer_map, CANONIZERS[canonizers]())
    given = list(composite.canonizers)
    before = snapshot(model, clip)
    expected = attributed(ZennitGradient(by_hand(model), LayerMapComposite([(Sum, Norm()), *RULES])), clip)
    for method in (composite, ZennitGradient(model, composite), Gradient(model, composite)):
        explanation = sr.explain(model, clip, method, TARGET)
        close(explanation.relevance, expected)
        # Zennit 0.5.1 forgets the batch norm's epsilon when it merges: 1e-5 of the logits.
        assert np.allclose(explanation.logits, model(clip), rtol=1e-6, atol=1e-7)
    assert all(one is other for one, other in zip(composite.canonizers, given, strict=True))
    assert composite.layer_map is layer_map
    assert not composite.handles
    assert snapshot(model, clip) == before
    # As Zennit takes it by itself, sums double relevance: the test would notice.
    bare = LayerMapComposite(RULES, [VideoCanonizer()])
    assert np.abs(attributed(ZennitGradient(model, bare), clip) - expected).max() > 0.1 * np.abs(expected).max()


def named(*paths):
    """Rules by the names of modules, which are others in the network that is written by hand."""
    rules = (ZBox(LOW, HIGH), Gamma(0.5), Gamma(0.5), Epsilon())
    return [([path], rule) for path, rule in zip(paths, rules, strict=True)]


OURS = named("conv", "layer1.0.conv", "layer1.1.conv", "fc")
ZENNITS = named("0", "2.0.conv", "2.1.conv", "5")
KINDS = {
    "EpsilonPlus": lambda names: EpsilonPlus(epsilon=1e-3),
    "EpsilonGammaBox": lambda names: EpsilonGammaBox(LOW, HIGH, gamma=0.4),
    "EpsilonPlusFlat": lambda names: EpsilonPlusFlat(),
    "EpsilonAlpha2Beta1": lambda names: EpsilonAlpha2Beta1(zero_params="bias"),
    "ExcitationBackprop": lambda names: ExcitationBackprop(),
    "own rule for sums": lambda names: LayerMapComposite([(Sum, Norm(0.3)), *RULES]),
    "by name": lambda names: MixedComposite([NameMapComposite(names), LayerMapComposite(RULES[:2])]),
    "by name and type": lambda names: NameLayerMapComposite(names, RULES[:2]),
    "a function": lambda names: Composite(lambda ctx, name, module: EpsilonPlus().module_map(ctx, name, module)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_composite_of_any_kind_explains_what_zennit_by_hand_does(kind, model, clip):
    explanation = sr.explain(model, clip, KINDS[kind](OURS), TARGET)
    reference = KINDS[kind](ZENNITS)
    if kind.startswith("by name"):
        reference = MixedComposite([reference, LayerMapComposite([(Sum, Norm())])])
    close(explanation.relevance, attributed(ZennitGradient(by_hand(model), reference), clip))


def test_names_alone_are_enough(model, clip):
    ours = [*OURS, (["relu", "layer1.0.relu", "layer1.1.relu"], Pass()), (["pool"], Norm())]
    zennits = [*ZENNITS, (["1", "2.0.relu", "2.1.relu"], Pass()), (["3"], Norm())]
    reference = MixedComposite([NameMapComposite(zennits), LayerMapComposite([(Sum, Norm())])])
    expected = attributed(ZennitGradient(by_hand(model), reference), clip)
    close(sr.explain(model, clip, NameMapComposite(ours), TARGET).relevance, expected)


def test_a_guided_composite_stays_a_gradient(model, clip):
    """A sum's gradient goes to both summands: no rule for it, and nothing to merge."""
    composite = GuidedBackprop(canonizers=[SequentialMergeBatchNorm()])
    explanation = sr.explain(model, clip, composite, TARGET)
    close(explanation.relevance, attributed(ZennitGradient(by_hand(model), GuidedBackprop()), clip))
    assert sr.build_method(composite, model).composite.canonizers == []


def test_one_composite_serves_two_networks(model, clip):
    composite, other = EpsilonPlus(), residual(seed=5)
    for network in (model, other, model):
        expected = attributed(ZennitGradient(by_hand(network), EpsilonPlus()), clip)
        close(sr.explain(network, clip, composite, TARGET).relevance, expected)


def test_the_recipe_conserves_relevance_on_the_bundled_r3d_18():
    """Eight additions: 2⁸ times the relevance, where they have no rule."""
    spec = sr.ClipSpec(frames=4, short_side=32, crop=32)
    model = sr.load_model("r3d_18", weights="random", num_classes=5, spec=spec)
    clip = torch.rand(1, *spec.shape, generator=torch.Generator().manual_seed(0)) * 255 - 100
    no_bias = {"zero_params": "bias"}
    rules = [(Activation, Pass()), (AvgPool, Norm()), (Convolution, ZPlus(**no_bias)), (Linear, ZPlus(**no_bias))]
    assert sr.explain(model, clip, LayerMapComposite(rules)).relevance.sum() == pytest.approx(1, abs=1e-3)


# --- relevance inside the network ---


@pytest.mark.parametrize("entered", [False, True])
def test_a_container_of_blocks_is_recorded(entered, model, clip):
    """A dry run of the network, by which batch norms are merged, is no run of the explanation."""
    layers = ["layer1", "layer1.0", "layer1.1.conv", "fc"]
    attributor = sr.build_method(EpsilonPlus(), model, record=layers)
    if entered:
        with attributor:
            attributor(clip, HOT)
    else:
        attributor(clip, HOT)
    reference, expected = by_hand(model), {}
    for name, path in zip(layers, ("2", "2.0", "2.1.conv", "5"), strict=True):

        def watch(module, args, output, name=name):
            output.register_hook(lambda relevance: expected.__setitem__(name, relevance.clone()))

        reference.get_submodule(path).register_forward_hook(watch)
    attributed(ZennitGradient(reference, EpsilonPlus()), clip)
    for name in layers:
        assert torch.allclose(attributor.recorded[name], expected[name], rtol=1e-7, atol=1e-12), name
    assert torch.equal(attributor.recorded["fc"], HOT)


def test_a_container_is_recorded_with_a_registered_method(model, clip):
    attributor = sr.build_method("dtd", model, record="layer1")
    attributor(clip, HOT)
    assert attributor.recorded["layer1"].shape == (2, 4, 4, 8, 8)
    assert torch.allclose(attributor.recorded["layer1"].flatten(1).sum(1), torch.ones(2).double(), atol=1e-4)
