"""LRP and excitation backprop against Zennit's composites, formulas in NumPy float64, and conservation."""

import copy
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
from networks import small_c3d, snapshot
from selrel_zennit.composites import find_head
from selrel_zennit.models.c3d import C3D
from selrel_zennit.rules import ProportionalMaxPool

RELUS = [f"relu{name}" for name in ("1", "2", "3a", "3b", "4a", "4b", "5a", "5b", "6", "7")]
CONVOLUTIONS = ["conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b"]


def norm_relative(value, reference):
    value, reference = (torch.as_tensor(x).double() for x in (value, reference))
    return float((value - reference).norm() / reference.norm())


def box(spec):
    return [torch.tensor(np.array(bound)) for bound in spec.bounds()]


def relevance_of(name, model, clip, target=1, classes=5, **options):
    return sr.build_method(name, model, **options)(clip, sr.one_hot(target, classes).to(clip))[1]


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
        nn.Flatten(), nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 4),
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
    layers["head"] = (model[8], (6,))
    matrices = {name: dense(*layer) for name, layer in layers.items()}

    # forward
    inputs = {"first": clip.ravel()}
    hidden = np.maximum(matrices["first"][0] @ inputs["first"] + matrices["first"][1], 0)
    windows = to_windows(hidden)
    inputs["conv"] = windows.max(1)
    for name, below in (("linear", "conv"), ("head", "linear")):
        inputs[name] = np.maximum(matrices[below][0] @ inputs[below] + matrices[below][1], 0)
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


@pytest.mark.parametrize("options", [{}, {"epsilon": 0.5}, {"head": "fc8"}, {"head": "fc7"}])
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


# --- max pools in proportion ---


def windows_of(pool, shape):
    """All windows of a pool over an input of ``shape``: for each output position, the input positions."""
    per_axis = []
    for axis, size in enumerate(shape):

        def number(value, axis=axis):
            return value[axis] if isinstance(value, tuple) else value

        if hasattr(pool, "output_size"):
            count = number(pool.output_size)
            ranges = [range(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        else:
            kernel, step, padding = number(pool.kernel_size), number(pool.stride), number(pool.padding)
            ranges, start = [], -padding
            while start + kernel <= size + padding or (pool.ceil_mode and start < size):
                ranges.append(range(max(start, 0), min(start + kernel, size)))
                start += step
        per_axis.append(ranges)
    for output in itertools.product(*(range(len(ranges)) for ranges in per_axis)):
        chosen = [ranges[i] for ranges, i in zip(per_axis, output, strict=True)]
        yield output, list(itertools.product(*chosen))


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.MaxPool3d(2), (4, 4, 6)),
        (nn.MaxPool3d((1, 2, 2)), (2, 4, 4)),
        (nn.MaxPool3d(2, padding=(0, 1, 1)), (2, 7, 7)),
        (nn.MaxPool3d(3, stride=2, padding=1), (5, 6, 7)),
        (nn.MaxPool3d(3, stride=1, padding=1), (3, 4, 5)),
        (nn.MaxPool3d(3, stride=2, ceil_mode=True), (4, 6, 7)),
        (nn.MaxPool3d(2, stride=3), (5, 6, 8)),
        (nn.MaxPool2d((3, 2), stride=(1, 2)), (5, 6)),
        (nn.MaxPool1d(3, stride=2, padding=1), (8,)),
        (nn.MaxPool1d(2), (8,)),
        (nn.AdaptiveMaxPool3d((1, 2, 3)), (3, 4, 7)),
        (nn.AdaptiveMaxPool2d(2), (3, 5)),
    ],
)
def test_proportional_max_pool_equals_loops_over_windows(pool, shape):
    rng = np.random.default_rng(1)
    # A third zeros, some negative, many ties, two channels, and a channel with empty windows only.
    values = rng.integers(-1, 3, (2, 3, *shape)).astype(float)
    values[0, 2] = -1
    values[1, 2] = 0
    tracked = torch.from_numpy(values).requires_grad_()
    hook = ProportionalMaxPool()
    handles = hook.register(pool)
    output = pool(tracked)
    upper = torch.from_numpy(rng.normal(size=tuple(output.shape)))
    (actual,) = torch.autograd.grad(output, tracked, upper)
    handles.remove()

    expected = np.zeros_like(values)
    for item, channel in np.ndindex(2, 3):
        for position, window in windows_of(pool, shape):
            activations = np.array([max(values[(item, channel, *place)], 0) for place in window])
            shares = activations / activations.sum() if activations.any() else np.full(len(window), 1 / len(window))
            for place, part in zip(window, shares, strict=True):
                expected[(item, channel, *place)] += part * float(upper[(item, channel, *position)])
    assert np.allclose(actual.numpy(), expected, rtol=1e-12, atol=1e-14)
    assert float(actual.sum()) == pytest.approx(float(upper.sum()), abs=1e-10)
    assert not hook.stored_tensors


def test_proportional_max_pool_survives_tiny_activations():
    pool, tiny = nn.MaxPool3d(2), torch.full((1, 1, 2, 2, 2), 1e-42, requires_grad=True)
    handles = ProportionalMaxPool().register(pool)
    (relevance,) = torch.autograd.grad(pool(tiny), tiny, torch.full((1, 1, 1, 1, 1), 1e3))
    handles.remove()
    assert torch.allclose(relevance, torch.full_like(relevance, 125.0))


def test_dtd_with_proportional_pools_conserves_relevance(clip):
    model = small_c3d()
    winner, shared = (relevance_of("dtd", model, clip, pool=pool) for pool in ("winner", "proportional"))
    assert float(shared.double().sum()) == pytest.approx(float(winner.double().sum()), abs=1e-4)
    assert norm_relative(shared, winner) > 0.05
    assert torch.equal(winner, relevance_of("dtd", model, clip))


def test_bad_pool(clip):
    with pytest.raises(sr.InputError, match="pool must be 'winner' or 'proportional', got 'mean'"):
        sr.build_method("dtd", small_c3d(), pool="mean")
    model = small_c3d()
    model.pool5.dilation = 2
    before = snapshot(model, clip)
    with pytest.raises(sr.InputError, match="dilation"):
        relevance_of("dtd", model, clip, pool="proportional")
    assert snapshot(model, clip) == before


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


# --- excitation backprop ---


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
    with pytest.raises(sr.InputError, match=r"the model gives 5 logits: name the class layer with head='…'"):
        relevance_of(name, model, clip, **options)
    actual = relevance_of(name, model, clip, head="fc8", **options)
    assert torch.equal(actual, relevance_of(name, small_c3d(), clip, **options))
    with pytest.raises(sr.InputError, match=r"no linear layer or convolution 'fc9' \(did you mean 'fc8'"):
        sr.build_method(name, model, head="fc9", **options)
    empty = nn.Sequential(nn.Flatten()).eval()
    empty.spec = model.spec
    with pytest.raises(sr.InputError, match="has no linear layer or convolution"):
        sr.build_method(name, empty, **options)


def test_the_class_layer_is_the_last_one_registered():
    model = small_c3d()
    assert find_head(model) is model.fc8
    assert find_head(model, "fc6") is model.fc6
    convolutional = nn.Sequential(nn.Linear(3, 3), nn.Conv3d(3, 5, 1), nn.Flatten())
    assert find_head(convolutional) is convolutional[1]


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
