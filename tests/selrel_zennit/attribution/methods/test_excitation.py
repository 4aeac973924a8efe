"""Excitation backprop against Zennit's composite and the paper's two passes; the class layer it starts from."""

import copy

import pytest
import torch
from torch import nn
from zennit.attribution import Gradient as ZennitGradient
from zennit.composites import ExcitationBackprop

import selrel_zennit as sr
from maps import norm_relative, relevance_of
from networks import small_c3d, snapshot
from selrel_zennit.models.c3d import C3D
from selrel_zennit.network.paths import class_layers


def mwp_from(model, start, activations, target=1):
    """Zennit's excitation backprop through the last layers of a network, down to their input."""
    layers = nn.Sequential(*list(model)[start:])
    with ZennitGradient(layers, ExcitationBackprop(zero_params="bias")) as reference:
        return reference(activations.clone(), sr.one_hot(target, 5))[1].detach()


def cmwp_from(model, start, activations):
    """The paper's two passes: the second one with the class layer's weights negated; subtract, sum, clamp."""
    negated = copy.deepcopy(model)
    negated.fc8.weight = nn.Parameter(-negated.fc8.weight, requires_grad=False)
    first, second = (mwp_from(net, start, activations) for net in (model, negated))
    return (first - second).sum(1, keepdim=True).clamp(min=0)


def test_contrastive_excitation_backprop_equals_two_passes(clip):
    model = small_c3d()
    expected = cmwp_from(model, 0, clip)
    actual = relevance_of("excitation_backprop", model, clip, contrastive=True)
    assert expected.sum() > 0
    # The difference is small beside its parts: both sides lose digits.
    assert norm_relative(actual.sum(1, keepdim=True), expected) < 1e-3
    assert torch.equal(actual[:, 0], actual[:, 2])


@pytest.mark.parametrize("contrastive", [False, True])
@pytest.mark.parametrize("layer", ["pool1", "relu4a"])
def test_excitation_backprop_stops_at_a_layer(contrastive, layer, clip):
    model = small_c3d()
    start = list(model._modules).index(layer) + 1
    activations = nn.Sequential(*list(model)[:start])(clip)
    if contrastive:
        expected = cmwp_from(model, start, activations)
    else:
        expected = mwp_from(model, start, activations).sum(1, keepdim=True)
        assert float(expected.sum()) == pytest.approx(1, abs=0.02)
    expected = nn.functional.interpolate(expected, clip.shape[2:], mode="trilinear", align_corners=False)
    actual = relevance_of("excitation_backprop", model, clip, contrastive=contrastive, layer=layer)
    assert actual.shape == clip.shape
    assert expected.sum() > 0
    assert norm_relative(actual.sum(1, keepdim=True), expected) < 1e-3
    assert torch.equal(actual[:, 0], actual[:, 2])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_excitation_backprop_sums_to_one_without_biases(batch_norm, clip):
    model = C3D(5, width=4, hidden=16, batch_norm=batch_norm, spec=small_c3d().spec)
    model.reset_parameters(1)
    if batch_norm:
        model.bn2.weight.data.mul_(3)
    model.eval().requires_grad_(False)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            parameter.zero_()
    relevance = relevance_of("excitation_backprop", model, clip)
    assert float(relevance.double().sum()) == pytest.approx(1, abs=1e-4)
    assert relevance.min() >= 0


@pytest.mark.slow
def test_excitation_backprop_sums_to_one_on_a_real_clip(real_clips):
    model = sr.load_model("c3d", weights="random", num_classes=101)
    clip = model.spec.clip(sr.read_frames(real_clips["cricket_shot"], count=16))
    relevance = relevance_of("excitation_backprop", model, clip, target=7, classes=101)
    assert float(relevance.double().sum()) == pytest.approx(1, abs=1e-4)
    assert relevance.min() >= 0


# --- the class layer ---


class HeadFirst(nn.Module):
    """A network that registers its class layer before the others."""

    def __init__(self):
        super().__init__()
        body = small_c3d()
        self.fc8 = body.fc8
        self.body = nn.Sequential(*list(body)[:-1])
        self.spec = body.spec

    def forward(self, clip):
        return self.fc8(self.body(clip))


METHODS_WITH_A_HEAD = [("dtd_epsilon_head", {}), ("excitation_backprop", {"contrastive": True})]


@pytest.mark.parametrize(("name", "options"), METHODS_WITH_A_HEAD)
def test_the_class_layer_is_checked_and_can_be_named(name, options, clip):
    model = HeadFirst().eval()
    expected = relevance_of(name, small_c3d(), clip, **options)
    for named in ({}, {"head": "fc8"}):
        assert torch.equal(relevance_of(name, model, clip, **named, **options), expected)
    with pytest.raises(sr.InputError, match=r"layer 'body.0' does not give the logits: the class layer is fc8"):
        relevance_of(name, model, clip, head="body.0", **options)
    with pytest.raises(sr.InputError, match=r"no linear layer or convolution 'fc9' \(did you mean 'fc8'"):
        sr.build_method(name, model, head="fc9", **options)
    empty = nn.Sequential(nn.Flatten()).eval()
    empty.spec = model.spec
    with pytest.raises(sr.InputError, match="has no linear layer or convolution"):
        sr.build_method(name, empty, **options)


def test_the_class_layer_is_what_gives_the_logits():
    model = HeadFirst().eval()
    assert class_layers(model) == [model.fc8]
    convolutional = nn.Sequential(nn.Linear(3, 3), nn.Conv3d(3, 5, 1), nn.Flatten())
    assert class_layers(convolutional) == [convolutional[1]]  # no clip to run it on: the last one registered


class Auxiliary(nn.Module):
    """A second head of the same width, registered behind the first, whose answer is thrown away."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        self.head, self.auxiliary = nn.Linear(4, 5), nn.Linear(4, 5)
        self.spec = sr.ClipSpec(frames=4, short_side=16, crop=16)

    def forward(self, clip):
        features = self.features(clip)
        self.auxiliary(features)
        return self.head(features)


@pytest.mark.parametrize("name", ["dtd_epsilon_head", "excitation_backprop"])
def test_an_auxiliary_head_takes_no_part(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Auxiliary().eval()
    plain = nn.Sequential(*model.features, model.head).eval()
    plain.spec = model.spec
    noise = torch.randn(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1)) * 50
    options = {"contrastive": True} if name == "excitation_backprop" else {}
    assert torch.equal(*(relevance_of(name, network, noise, **options) for network in (model, plain)))


@pytest.mark.parametrize(
    ("name", "options"),
    [*METHODS_WITH_A_HEAD, ("dtd", {"pool": "proportional"}), ("excitation_backprop", {"layer": "relu3b"})],
)
def test_model_is_restored_with_options(name, options, clip):
    model = small_c3d()
    before = snapshot(model, clip)
    with sr.build_method(name, model, **options) as attributor, torch.no_grad():
        attributor(clip, sr.one_hot(1, 5))
        hooks = list(attributor.composite.hook_refs)
        assert hooks
        assert all(not hook.tensor_handles and not hook.stored_tensors for hook in hooks)
    assert snapshot(model, clip) == before


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dtd_contrastive", {}, r"dtd_contrastive needs the bounds of valid input: set model\.spec"),
        ("dtd_epsilon_head", {}, r"dtd_epsilon_head needs the bounds"),
        ("lrp_epsilon_gamma_box", {}, r"lrp_epsilon_gamma_box needs the bounds"),
        ("excitation_backprop", {"layer": "relu5c"}, r"did you mean"),
        ("excitation_backprop", {"layer": ""}, r"no layer ''"),
    ],
)
def test_bad_model_or_layer(name, options, message):
    model = small_c3d()
    del model.spec
    with pytest.raises(sr.InputError, match=message):
        sr.build_method(name, model, **options)


def test_excitation_backprop_needs_a_layer_of_clips(clip):
    with pytest.raises(sr.InputError, match="choose a convolutional layer"):
        relevance_of("excitation_backprop", small_c3d(), clip, layer="fc6")
