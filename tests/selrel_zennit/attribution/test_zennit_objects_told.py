"""Zennit's own attributors and composites, linted, calibrated, written down, or refused."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from zennit.attribution import Attributor, IntegratedGradients, SmoothGrad
from zennit.attribution import Gradient as ZennitGradient
from zennit.composites import (
    COMPOSITES,
    EpsilonPlus,
    EpsilonPlusFlat,
    GuidedBackprop,
    LayerMapComposite,
    NameLayerMapComposite,
    NameMapComposite,
)
from zennit.core import Composite
from zennit.rules import Epsilon, Flat, Gamma, Norm, Pass, ZBox
from zennit.types import Activation, AvgPool, Convolution, Linear

import selrel_zennit as sr
from networks import snapshot
from residual import residual
from selrel_zennit.attribution import VideoAttributor
from selrel_zennit.calibration.stills import Stills
from selrel_zennit.lint.linter import lint

RULES = [(Activation, Pass()), (AvgPool, Norm()), (Convolution, Gamma(0.5)), (Linear, Epsilon())]


@pytest.fixture(scope="module")
def model():
    return residual()


@pytest.fixture(scope="module")
def clip(model):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, *model.spec.shape, generator=generator, dtype=torch.float64)


# --- what else takes a method ---


def test_lint_follows_a_composites_relevance(model, clip):
    good = lint(model, EpsilonPlus(zero_params="bias"), clip[:1])
    assert good.method == "EpsilonPlus"
    assert good.conserved == pytest.approx(1, abs=1e-3)
    biased = lint(model, ZennitGradient(model, EpsilonPlus()), clip[:1])
    assert "bias" in {finding.kind for finding in biased.findings}
    for other in (SmoothGrad(model, EpsilonPlus()), ZennitGradient(model), GuidedBackprop()):
        with pytest.raises(sr.InputError, match="places no rules that conserve relevance"):
            lint(model, other, clip[:1])


def noise_stills(fit, held_out):
    frames = np.random.default_rng(0).integers(0, 256, (fit + held_out, 8, 8, 3), dtype=np.uint8)
    return Stills(list(frames[:fit]), list(frames[fit:]), "noise", None, 0)


def test_a_calibration_is_of_one_composite(model):
    model = copy.deepcopy(model).float()
    made = sr.calibrate(model, EpsilonPlus(), noise_stills(4, 2), alphas=(0.1,))
    read = sr.Calibration.from_json(made.to_json())
    assert read == made
    clip = model.spec.clip(np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))
    selection = read.selection(0.1)
    for same in (EpsilonPlus(), ZennitGradient(model, EpsilonPlus(epsilon=1e-6))):
        explanation = sr.explain(model, clip, same, selection=selection)
    assert np.array_equal(explanation.mask, selection.mask(explanation.relevance))
    for other, what in (
        (EpsilonPlus(epsilon=1e-5), "options"),
        (EpsilonPlus(zero_params="bias"), "options"),
        (EpsilonPlusFlat(), "method, EpsilonPlus, not EpsilonPlusFlat"),
        (SmoothGrad(model, EpsilonPlus()), "method, EpsilonPlus, not SmoothGrad of EpsilonPlus"),
        ("dtd", "method, EpsilonPlus, not dtd"),
    ):
        with pytest.raises(sr.InputError, match=f"another {what}"):
            sr.explain(model, clip, other, selection=selection)


def test_no_calibration_of_what_cannot_be_told_apart(model):
    model = copy.deepcopy(model).float()
    hidden = Composite(lambda ctx, name, module: EpsilonPlus().module_map(ctx, name, module))
    for method in (hidden, IntegratedGradients(model, baseline_fn=lambda clip: clip * 0)):
        with pytest.raises(sr.InputError, match=r"functions (with a|that have a) name"):
            sr.calibrate(model, method, noise_stills(2, 2), alphas=(0.1,))


# --- what it was ---


def test_info_of_a_composite_tells_its_rules(model):
    composite = NameLayerMapComposite([(["conv"], ZBox(torch.tensor([[[[[-1.0]]]] * 3]), 2.0))], RULES)
    info = sr.build_method(composite, model).info
    assert info["method"] is None
    assert info["attributor"] == "selrel_zennit.attribution.methods.gradient.Gradient"
    said = info["composite"]
    assert said["class"] == "zennit.composites.NameLayerMapComposite"
    by_name, by_type = said["composites"]
    box = {"class": "zennit.rules.ZBox", "low": [[[[[-1.0]]]] * 3], "high": 2.0}
    box |= {"stabilizer": 1e-6, "zero_params": None}
    assert by_name["name_map"] == [{"names": ["conv"], "rule": box}]
    assert {"types": "zennit.types.AvgPool", "rule": {"class": "zennit.rules.Norm", "stabilizer": 1e-6}} in by_type[
        "layer_map"
    ]
    gamma = {"class": "zennit.rules.Gamma", "gamma": 0.5, "stabilizer": 1e-6, "zero_params": None}
    assert {"types": "zennit.types.Convolution", "rule": gamma} in by_type["layer_map"]
    assert said["added_rules"] == [
        {"types": "zennit.layer.Sum", "rule": {"class": "zennit.rules.Norm", "stabilizer": 1e-6}},
        {"types": "zennit.types.BatchNorm", "rule": {"class": "zennit.rules.Pass"}},
    ]
    assert [one["class"] for one in said["canonizers"]] == ["selrel_zennit.canonizers.batch_norm.VideoCanonizer"]
    assert json.loads(json.dumps(info)) == info


def test_info_of_an_attributor_tells_its_options(model):
    info = sr.build_method(SmoothGrad(model, EpsilonPlus(), noise_level=0.3), model).info
    assert info["options"] == {"noise_level": 0.3, "n_iter": 20}
    assert info["attributor"] == "zennit.attribution.SmoothGrad"
    assert info["composite"]["class"] == "zennit.composites.EpsilonPlus"
    assert sr.build_method(ZennitGradient(model), model).info["composite"] is None


# --- what is refused ---


class Registers(ZennitGradient):
    """Enters the network in a way of its own."""

    def __enter__(self):
        return super().__enter__()


def of_another(model):
    return ZennitGradient(copy.deepcopy(model))


def registered(model):
    attributor = ZennitGradient(copy.deepcopy(model), EpsilonPlus())
    attributor.__enter__()
    return attributor.composite


REFUSED = {
    "a class": (lambda model: EpsilonPlus, "the class EpsilonPlus: pass an object of it"),
    "a number": (lambda model: 3, "a method is the name of one, a Zennit attributor or a Zennit composite, got 3"),
    "a composite's name": (lambda model: "epsilon_plus", "the composite 'epsilon_plus' is passed as an object"),
    "another network": (of_another, "an attributor of another network"),
    "registered": (registered, "EpsilonPlus is registered on a network: leave its with block"),
    "own entry": (Registers, "enters the network in a way of its own: derive it from"),
    "no rule": (lambda model: LayerMapComposite([(nn.Bilinear, Pass())]), "gives no module of the network a rule"),
    "misspelt": (lambda model: NameMapComposite([(["layr1.0.conv"], Flat())]), "did you mean 'layer1.0.conv'"),
    "selects": (lambda model: sr.Selective(ZennitGradient(model)), "pass the inner attributor and selection="),
    "options": (lambda model: EpsilonPlus(), "go with a method's name", {"epsilon": 1}),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(fault, model, clip):
    build, sentence, *options = REFUSED[fault]
    before = snapshot(model, clip)
    with pytest.raises(sr.InputError, match=sentence) as caught:
        sr.explain(model, clip, build(model), **(options[0] if options else {}))
    assert "\n" not in str(caught.value)
    assert snapshot(model, clip) == before


def test_an_attributor_that_raises_leaves_nothing(model, clip):
    class Fails(ZennitGradient):
        def forward(self, input, attr_output_fn):
            super().forward(input, attr_output_fn)
            raise KeyError("planted")

    before = snapshot(model, clip)
    attributor = Fails(model, EpsilonPlus())
    with pytest.raises(KeyError):
        sr.explain(model, clip, attributor)
    assert snapshot(model, clip) == before
    assert attributor.model is model
    assert not attributor.composite.handles


# --- what no rule sees ---


class Averages(nn.Module):
    """A network with an average that is no module."""

    spec = sr.ClipSpec(frames=4, short_side=8, crop=8)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4, 5)

    def forward(self, clip):
        features = self.relu(self.conv(clip))
        return self.fc(torch.einsum("bcthw,cd->bd", features, torch.eye(4).to(features)) / 256)


UNSEEN = {
    "EpsilonPlus": lambda model: EpsilonPlus(),
    "SmoothGrad of EpsilonPlus": lambda model: SmoothGrad(model, EpsilonPlus(), n_iter=2),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_no_rule_sees_is_refused_or_said(name):
    model = Averages().double().eval()
    clip = torch.randn(1, *model.spec.shape, dtype=torch.float64)
    with pytest.raises(sr.InputError, match=f"^{name} would be wrong for this network"):
        sr.explain(model, clip, UNSEEN[name](model))
    explanation = sr.explain(model, clip, UNSEEN[name](model), strict=False)
    assert any("Averages" in one for one in explanation.unseen)
    compared = sr.versus(model, clip, UNSEEN[name](model), 0, 1, strict=False)
    assert compared.first.unseen == explanation.unseen
    assert sr.versus(model, clip, "lrp_epsilon_plus", 0, 1, strict=False).first.unseen
    with pytest.raises(sr.InputError, match=r"set attributor\.strict = False"):
        sr.explain(model, clip, sr.build_method(UNSEEN[name](model), model), strict=False)


def test_a_calibration_fits_inside_the_block_too(model):
    """There the attributor's model is a copy, whose weights are others."""
    model = copy.deepcopy(model).float()
    selection = sr.calibrate(model, EpsilonPlus(), noise_stills(4, 2), alphas=(0.1,)).selection(0.1)
    clip = model.spec.clip(np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))
    outside = sr.explain(model, clip, EpsilonPlus(), selection=selection)
    with sr.build_method(EpsilonPlus(), model) as attributor:
        inside = sr.explain(model, clip, attributor, selection=selection)
    assert np.array_equal(inside.mask, outside.mask)


# --- the promise of the README ---


@pytest.mark.parametrize("name", sr.METHODS)
def test_the_pieces_are_zennits_own_types(name):
    from networks import few_layers

    attributor = sr.build_method(name, few_layers())
    assert isinstance(attributor, Attributor)
    assert isinstance(attributor, VideoAttributor)
    assert attributor.composite is None or isinstance(attributor.composite, Composite)
    assert isinstance(sr.Selective(attributor), Attributor)
    assert "not known" not in json.dumps(attributor.info)
    assert list(attributor.info["options"]) == sr.METHODS[name].options


def test_a_composite_of_the_registry_is_one_of_zennits():
    for name in ("dtd", "dtd_epsilon_head", "excitation_backprop_contrastive"):
        assert issubclass(COMPOSITES[name], Composite)
