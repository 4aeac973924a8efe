"""LRP and excitation backprop against Zennit's composites, formulas in NumPy float64, and conservation."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from zennit.attribution import Gradient as ZennitGradient
from zennit.composites import (
    COMPOSITES,
    EpsilonAlpha2Beta1,
    EpsilonGammaBox,
    EpsilonPlus,
    ExcitationBackprop,
    NameMapComposite,
)
from zennit.rules import Epsilon, Pass, ZBox, ZPlus

import selrel_zennit as sr
from maps import norm_relative, relevance_of
from networks import small_c3d

RELUS = [f"relu{name}" for name in ("1", "2", "3a", "3b", "4a", "4b", "5a", "5b", "6", "7")]
CONVOLUTIONS = ["conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b"]


def box(spec):
    return [torch.tensor(np.array(bound)) for bound in spec.bounds()]


# --- every method re-derived from its formulas in NumPy float64, layers as dense matrices ---


def share(contributions, relevance, total):
    """R_j = Σ_i z_ij R_i ÷ (Σ_k z_ik + ε·sign)."""
    stable = total + np.where(total >= 0, 1e-6, -1e-6)
    return (contributions * (relevance / stable)[:, None]).sum(0)


def plus(w, b, x, r):
    z = np.maximum(w * x, 0)
    return share(z, r, z.sum(1) + np.maximum(b, 0))


def epsilon(w, b, x, r):
    return share(w * x, r, (w * x).sum(1) + b)


def gamma(w, b, x, r, g=0.25):
    assert (x >= 0).all()
    z, sign = w * x, np.sign((w * x).sum(1) + b)
    up = share(z + g * np.maximum(z, 0), r * (sign > 0), (z + g * np.maximum(z, 0)).sum(1) + b + g * np.maximum(b, 0))
    down = share(z + g * np.minimum(z, 0), r * (sign < 0), (z + g * np.minimum(z, 0)).sum(1) + b + g * np.minimum(b, 0))
    return up + down


def alpha2_beta1(w, b, x, r):
    positive, negative = np.maximum(w * x, 0), np.minimum(w * x, 0)
    return 2 * share(positive, r, positive.sum(1) + np.maximum(b, 0)) - share(
        negative, r, negative.sum(1) + np.minimum(b, 0)
    )


def contrast(w, b, x, r):
    return plus(w, b, x, r) - plus(-w, b, x, r)


def z_box(w, b, x, r):
    low, high = (
        np.repeat([(end - m) / s for m, s in zip((102, 98, 90), (50, 60, 70), strict=True)], 64) for end in (0, 255)
    )
    z = w * x - np.maximum(w, 0) * low - np.minimum(w, 0) * high
    return share(z, r, z.sum(1))


def unbiased(rule):
    return lambda w, b, x, r: rule(w, 0 * b, x, r)


DTD_RULES = {"first": z_box, "conv": unbiased(plus), "linear": unbiased(plus), "head": unbiased(plus)}
EXCITATION = {**DTD_RULES, "first": unbiased(plus)}
REDERIVED = {
    "dtd": ({}, DTD_RULES),
    "dtd-proportional": ({"pool": "proportional"}, {**DTD_RULES, "pool": "proportional"}),
    "dtd_epsilon_head": ({}, {**DTD_RULES, "head": unbiased(epsilon)}),
    "dtd_contrastive": ({}, {**DTD_RULES, "initial": [-1 / 3, -1 / 3, 1, -1 / 3]}),
    "lrp_epsilon_plus": ({}, {"first": plus, "conv": plus, "linear": epsilon, "head": epsilon}),
    "lrp_epsilon_plus-unbiased": (
        {"zero_params": "bias"},
        {"first": unbiased(plus), "conv": unbiased(plus), "linear": unbiased(epsilon), "head": unbiased(epsilon)},
    ),
    "lrp_epsilon_gamma_box": ({}, {"first": z_box, "conv": gamma, "linear": epsilon, "head": epsilon}),
    "lrp_alpha2_beta1": ({}, {"first": alpha2_beta1, "conv": alpha2_beta1, "linear": epsilon, "head": epsilon}),
    "excitation_backprop": ({}, EXCITATION),
    "excitation_backprop-contrastive": (
        {"contrastive": True},
        {**EXCITATION, "head": unbiased(contrast), "clamp": True},
    ),
}


def tiny_network():
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(
        nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 3, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 4),
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    model.spec = sr.ClipSpec(frames=4, short_side=4, crop=4, std=(50.0, 60.0, 70.0))
    return model.double().eval().requires_grad_(False)


def dense(layer, shape):
    """The matrix of a convolution or linear layer, column by column, and its bias for each output."""
    units = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)
    bias = layer(torch.zeros_like(units[:1])).flatten()
    return (layer(units).flatten(1) - bias).T.numpy(), bias.numpy()


def to_windows(values):
    """[4·4·4·4] → [32 windows, 8 positions], of a pool of 2 in each direction."""
    return values.reshape(4, 2, 2, 2, 2, 2, 2).transpose(0, 1, 3, 5, 2, 4, 6).reshape(32, 8)


def from_windows(windows):
    return windows.reshape(4, 2, 2, 2, 2, 2, 2).transpose(0, 1, 4, 2, 5, 3, 6).reshape(-1)


@pytest.mark.parametrize("case", REDERIVED)
def test_equals_a_float64_rederivation(case):
    options, rules = REDERIVED[case]
    model = tiny_network()
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 4, 3), dtype=np.uint8)
    clip = model.spec.from_pixels(pixels).astype(float)
    layers = {"first": (model[0], (3, 4, 4, 4)), "conv": (model[3], (4, 2, 2, 2)), "linear": (model[6], (24,))}
    layers["head"] = (model[8], (12,))
    matrices = {name: dense(*layer) for name, layer in layers.items()}

    # forward
    inputs = {"first": clip.ravel()}
    hidden = np.maximum(matrices["first"][0] @ inputs["first"] + matrices["first"][1], 0)
    windows = to_windows(hidden)
    inputs["conv"] = windows.max(1)
    for name, below in (("linear", "conv"), ("head", "linear")):
        inputs[name] = np.maximum(matrices[below][0] @ inputs[below] + matrices[below][1], 0)
    # The network tells the rules apart: the class layer has contributions of both signs, for every class.
    products = matrices["head"][0] * inputs["head"]
    assert (products > 0).any(1).all()
    assert (products < 0).any(1).all()
    # backward
    relevance = np.array(rules.get("initial", [0, 0, 1, 0]), dtype=float)
    for name in ("head", "linear", "conv"):
        relevance = rules[name](*matrices[name], inputs[name], relevance)
    if rules.get("pool") == "proportional":
        total = windows.sum(1, keepdims=True)
        shares = np.where(total > 0, windows / np.where(total > 0, total, 1), 1 / 8)
    else:
        shares = np.eye(8)[windows.argmax(1)]
    relevance = from_windows(shares * relevance[:, None])
    relevance = rules["first"](*matrices["first"], inputs["first"], relevance).reshape(clip.shape)
    if rules.get("clamp"):
        relevance = np.repeat(np.maximum(relevance.sum(1, keepdims=True), 0) / 3, 3, axis=1)

    name = case.partition("-")[0]
    actual = relevance_of(name, model, torch.from_numpy(clip), target=2, classes=4, **options)
    assert np.abs(relevance).sum() > 0.01
    # The bounds are float32 in ClipSpec: 1e-7 is their rounding. Nothing else is.
    assert norm_relative(actual, relevance) < (1e-6 if rules["first"] is z_box else 1e-12)


# --- Zennit's own composites, and rules placed by hand ---


@pytest.mark.parametrize(
    ("name", "options", "composite"),
    [
        ("lrp_epsilon_plus", {}, lambda low, high: EpsilonPlus()),
        ("lrp_epsilon_plus", {"epsilon": 0.1, "zero_params": "bias"}, lambda *_: EpsilonPlus(0.1, zero_params="bias")),
        ("lrp_epsilon_gamma_box", {}, lambda low, high: EpsilonGammaBox(low, high)),
        (
            "lrp_epsilon_gamma_box",
            {"epsilon": 0.1, "gamma": 1.0, "zero_params": "bias"},
            lambda low, high: EpsilonGammaBox(low, high, epsilon=0.1, gamma=1.0, zero_params="bias"),
        ),
        ("lrp_alpha2_beta1", {}, lambda low, high: EpsilonAlpha2Beta1()),
        ("lrp_alpha2_beta1", {"epsilon": 0.1}, lambda low, high: EpsilonAlpha2Beta1(0.1)),
        ("excitation_backprop", {}, lambda low, high: ExcitationBackprop(zero_params="bias")),
    ],
)
def test_equals_zennits_composite(name, options, composite, clip):
    model = small_c3d()
    with ZennitGradient(model, composite(*box(model.spec))) as reference:
        logits, expected = reference(clip, sr.one_hot(1, 5))
    actual_logits, actual = sr.build_method(name, model, **options)(clip, sr.one_hot(1, 5))
    assert torch.equal(actual, expected.detach())
    assert torch.equal(actual_logits, logits.detach())


@pytest.mark.parametrize("options", [{}, {"epsilon": 0.5}, {"head": "fc8"}])
def test_dtd_epsilon_head_equals_rules_placed_by_hand(options, clip):
    model = small_c3d(num_classes=16)
    head = options.get("head", "fc8")
    linear = [name for name in ("fc6", "fc7", "fc8") if name != head]
    low, high = box(model.spec)
    composite = NameMapComposite(
        [
            (["conv1"], ZBox(low=low, high=high, zero_params="bias")),
            ([*CONVOLUTIONS, *linear], ZPlus(zero_params="bias")),
            ([head], Epsilon(options.get("epsilon", 1e-6), zero_params="bias")),
            (RELUS, Pass()),
        ]
    )
    with ZennitGradient(model, composite) as reference:
        _, expected = reference(clip, sr.one_hot(1, 16))
    assert torch.equal(relevance_of("dtd_epsilon_head", model, clip, classes=16, **options), expected.detach())


def test_the_composites_are_registered_with_zennit():
    for name in ("dtd", "dtd_epsilon_head", "excitation_backprop_contrastive"):
        assert COMPOSITES[name].__module__ == "selrel_zennit.composites"


# --- class against class ---


def cosines(name, clip, **options):
    """Cosines between the maps of all pairs of classes."""
    model = small_c3d()
    with sr.build_method(name, model, **options) as attributor:
        maps = [attributor(clip, sr.one_hot(index, 5))[1].double().flatten() for index in range(5)]
    return [float(a @ b / (a.norm() * b.norm())) for a, b in itertools.combinations(maps, 2)]


def test_dtd_contrastive_sees_the_class_where_dtd_does_not(clip):
    assert min(cosines("dtd", clip)) > 0.999
    assert np.mean(cosines("dtd_contrastive", clip)) < 0.1


def test_cmwp_sees_the_class_where_mwp_does_not(clip):
    assert min(cosines("excitation_backprop", clip)) > 0.999
    assert np.mean(cosines("excitation_backprop", clip, contrastive=True)) < 0.9


@pytest.mark.parametrize("pool", ["winner", "proportional"])
def test_dtd_contrastive_is_the_targets_map_minus_the_mean_of_the_others(pool, clip):
    model, clip = small_c3d().double(), clip.double()
    maps = [relevance_of("dtd", model, clip, target=index, pool=pool) for index in range(5)]
    expected = maps[1] - (maps[0] + maps[2] + maps[3] + maps[4]) / 4
    actual = relevance_of("dtd_contrastive", model, clip, target=1, pool=pool)
    assert norm_relative(actual, expected) < 1e-9
    assert abs(float(actual.sum())) < 1e-3 * float(actual.abs().sum())
    # In float32 the maps cancel to a thousandth of themselves, inside the network: digits are lost, but few.
    assert norm_relative(relevance_of("dtd_contrastive", model.float(), clip.float(), pool=pool), expected) < 1e-3


def test_dtd_contrastive_takes_any_output_attribution(clip):
    model = small_c3d()
    attributor = sr.build_method("dtd_contrastive", model)
    single = attributor(clip, sr.one_hot(3, 5))[1]
    assert torch.equal(attributor(clip, lambda logits: sr.one_hot(3, 5).to(logits))[1], single)
    assert norm_relative(attributor(clip, 2 * sr.one_hot(3, 5))[1], 2 * single) < 1e-3
    both = attributor(torch.cat([clip, clip]), sr.one_hot([3, 0], 5))[1]
    assert norm_relative(both[:1], single) < 1e-3
    with pytest.raises(sr.InputError, match="model with one class"):
        relevance_of("dtd_contrastive", small_c3d(num_classes=1), clip, target=0, classes=1)


def test_gamma_of_epsilon_plus_is_for_networks_with_attention():
    with pytest.raises(sr.InputError, match="with attention alone: use lrp_epsilon_gamma_box"):
        sr.build_method("lrp_epsilon_plus", sr.load_model("demo"), gamma=0.25)
