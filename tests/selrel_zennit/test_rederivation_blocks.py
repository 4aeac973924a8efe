"""DTD and LRP-ε of whole blocks, derived once more with matrices: no hooks, no automatic differentiation, float64.

Every linear layer is written out as a matrix A [outputs, inputs], a batch norm as a scale and a shift of its rows. The
rules are those of Bach et al. 2015 (ε) and Montavon et al. 2017 (z⁺, z^B); Zennit adds ±1e-6 to each denominator.
"""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.video.resnet import BasicBlock, Conv3DSimple
from zennit.composites import LayerMapComposite, layer_map_base
from zennit.rules import Epsilon
from zennit.types import Linear

import selrel_zennit as sr
from selrel_zennit.attribution import Gradient
from selrel_zennit.canonizers.batch_norm import VideoCanonizer
from selrel_zennit.models.i3d import Inception

SPEC = sr.ClipSpec(frames=3, short_side=5, crop=5)
STABILISER = 1e-6
TOLERANCE = 1e-9
"""Of the largest relevance."""


# --- the rules ---


def stable(values):
    return values + torch.where(values < 0, -STABILISER, STABILISER)


def epsilon_rule(matrix, bias, values, relevance):
    return values * (matrix.T @ (relevance / stable(matrix @ values + bias)))


def z_plus(matrix, values, relevance):
    """Positive products alone, those of two negative numbers too; no bias."""
    up, down = matrix.clamp(min=0), matrix.clamp(max=0)
    high, low = values.clamp(min=0), values.clamp(max=0)
    share = relevance / stable(up @ high + down @ low)
    return high * (up.T @ share) + low * (down.T @ share)


def z_box(matrix, values, lowest, highest, relevance):
    up, down = matrix.clamp(min=0), matrix.clamp(max=0)
    share = relevance / stable(matrix @ values - up @ lowest - down @ highest)
    return values * (matrix.T @ share) - lowest * (up.T @ share) - highest * (down.T @ share)


# --- layers as matrices ---


class Layer:
    """A convolution, with the batch norm behind it if there is one, as a matrix and a bias."""

    def __init__(self, convolution, shape, norm=None):
        size = shape[0] * shape[1] * shape[2] * shape[3]
        pixels = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
        options = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
        columns = F.conv3d(pixels, convolution.weight, None, *options)
        self.shape = tuple(columns.shape[1:])
        self.matrix = columns.flatten(1).T
        channels = torch.zeros(self.shape[0], dtype=torch.float64) if convolution.bias is None else convolution.bias
        scale = torch.ones_like(channels)
        if norm is not None:
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            channels = (channels - norm.running_mean) * scale + norm.bias
        each = self.matrix.shape[0] // self.shape[0]
        self.matrix = self.matrix * scale.repeat_interleave(each)[:, None]
        self.bias = channels.repeat_interleave(each)

    def __call__(self, values):
        return self.matrix @ values + self.bias

    def back(self, rule, values, relevance):
        if rule == "dtd":
            return z_plus(self.matrix, values, relevance)
        return epsilon_rule(self.matrix, self.bias, values, relevance)


def winners(values, shape, kernel):
    """Return, for each output of a max pool of stride 1 with padding, the index of the input that wins."""
    channels, *sizes = shape
    numbers = torch.arange(values.numel()).reshape(shape)
    found = []
    for channel, *place in itertools.product(range(channels), *map(range, sizes)):
        windows = [slice(max(p - kernel // 2, 0), p + kernel // 2 + 1) for p in place]
        inside = numbers[(channel, *windows)].flatten()
        found.append(inside[values[inside].argmax()])
    return torch.stack(found)


# --- the blocks: forward, and relevance back ---


def residual(block, shape, rule):
    """torchvision's BasicBlock with a shortcut of stride 2."""
    first = Layer(block.conv1[0], shape, block.conv1[1])
    second = Layer(block.conv2[0], first.shape, block.conv2[1])
    around = Layer(block.downsample[0], shape, block.downsample[1])

    def run(values):
        low = first(values).relu()
        through, beside = second(low), around(values)

        def back(relevance):
            share = relevance / stable(through + beside)
            inner = first.back(rule, values, second.back(rule, low, share * through))
            return inner + around.back(rule, values, share * beside)

        return (through + beside).relu(), back

    return run, second.shape


def inception(block, shape, rule):
    """I3D's block: four branches side by side, one of them behind a max pool."""
    layers = {
        name: Layer(unit.conv3d, (unit.conv3d.in_channels, *shape[1:]), unit.bn)
        for name, unit in block.named_children()
        if name != "b3a"
    }
    outputs = sum(layers[name].shape[0] for name in ("b0", "b1b", "b2b", "b3b"))

    def run(values):
        middles = {name: layers[f"{name}a"](values).relu() for name in ("b1", "b2")}
        won = winners(values, shape, 3)
        branches = [
            layers["b0"](values),
            layers["b1b"](middles["b1"]),
            layers["b2b"](middles["b2"]),
            layers["b3b"](values[won]),
        ]

        def back(relevance):
            parts = relevance.split([len(branch) for branch in branches])
            total = layers["b0"].back(rule, values, parts[0])
            for name, part in (("b1", parts[1]), ("b2", parts[2])):
                at_middle = layers[f"{name}b"].back(rule, middles[name], part)
                total = total + layers[f"{name}a"].back(rule, values, at_middle)
            pooled = layers["b3b"].back(rule, values[won], parts[3])
            return total.index_add(0, won, pooled)

        return torch.cat(branches).relu(), back

    return run, (outputs, *shape[1:])


def grouped(block, shape, rule):
    """A convolution of stride 2 in two groups, and its batch norm."""
    layer = Layer(block[0], shape, block[1])

    def run(values):
        return layer(values).relu(), lambda relevance: layer.back(rule, values, relevance)

    return run, layer.shape


# --- networks ---


def basic_block():
    around = nn.Sequential(nn.Conv3d(4, 6, 1, 2, bias=False), nn.BatchNorm3d(6))
    return BasicBlock(4, 6, Conv3DSimple, 2, around), 6


def inception_block():
    return Inception(4, (2, 2, 3, 2, 2, 3), (SPEC.frames, SPEC.crop, SPEC.crop)), 10


def grouped_block():
    return nn.Sequential(nn.Conv3d(4, 6, 3, 2, 1, groups=2), nn.BatchNorm3d(6), nn.ReLU()), 6


BLOCKS = {
    "residual": (basic_block, residual),
    "inception": (inception_block, inception),
    "grouped": (grouped_block, grouped),
}


def network(build):
    """Return a convolution, the block and a class layer in float64, with batch norms as after training."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        block, channels = build()
        model = nn.Sequential(
            nn.Conv3d(3, 4, 3, padding=1),
            nn.ReLU(),
            block,
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(channels, 3),
        )
        for module in model.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.3)
    model.spec = SPEC
    return model.double().eval().requires_grad_(False)


def by_hand(model, make, pixels, target, rule):
    """Return logits and relevance of one clip [3,T,H,W]."""
    stem, fc = Layer(model[0], tuple(pixels.shape)), model[5]
    run, shape = make(model[2], stem.shape, rule)
    values = pixels.flatten()
    low = stem(values).relu()
    high, back = run(low)
    each = high.numel() // shape[0]
    mean = torch.eye(shape[0], dtype=torch.float64).repeat_interleave(each, 1) / each
    features = mean @ high
    start = torch.zeros(3, dtype=torch.float64)
    start[target] = 1
    if rule == "dtd":
        relevance = z_plus(fc.weight, features, start)
    else:
        relevance = epsilon_rule(fc.weight, fc.bias, features, start)
    relevance = back(epsilon_rule(mean, torch.zeros_like(features), high, relevance))
    if rule == "dtd":
        ends = (torch.from_numpy(end.copy()).double().expand(1, *pixels.shape).flatten() for end in SPEC.bounds())
        relevance = z_box(stem.matrix, values, *ends, relevance)
    else:
        relevance = stem.back(rule, values, relevance)
    return fc.weight @ features + fc.bias, relevance.reshape(pixels.shape)


def attributor_of(model, rule):
    if rule == "dtd":
        return sr.build_method("dtd", model)
    rules = [*layer_map_base(STABILISER), (Linear, Epsilon(epsilon=STABILISER))]
    return Gradient(model, LayerMapComposite(layer_map=rules, canonizers=[VideoCanonizer()]))


@pytest.mark.parametrize("rule", ["dtd", "epsilon"])
@pytest.mark.parametrize("block", BLOCKS)
def test_relevance_is_that_of_the_matrices(block, rule):
    build, make = BLOCKS[block]
    model = network(build)
    low, high = (torch.from_numpy(end.copy()).double() for end in SPEC.bounds())
    clip = low + (high - low) * torch.rand(
        2, *SPEC.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    with attributor_of(model, rule) as attributor:
        logits, relevance = attributor(clip, sr.one_hot([0, 2], 3).double())
    for index, target in enumerate((0, 2)):
        expected_logits, expected = by_hand(model, make, clip[index], target, rule)
        torch.testing.assert_close(logits[index], expected_logits, rtol=1e-10, atol=1e-10)
        assert expected.abs().max() > 1e-4
        assert (relevance[index] - expected).abs().max() <= TOLERANCE * expected.abs().max()
