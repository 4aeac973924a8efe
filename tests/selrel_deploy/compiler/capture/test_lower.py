"""Lowered operations against torch's own, on values with ties, in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from selrel_deploy.compiler.capture.lower import PLAIN
from selrel_zennit import InputError


def check(lowered, function, *shape, ties=False, tolerance=1e-12):
    """Compare the value and the gradient of a function of one tensor, before and after lowering."""
    generator = torch.Generator().manual_seed(sum(shape))
    draw = torch.randint(0, 3, shape, generator=generator) if ties else torch.randn(shape, generator=generator)
    value = draw.double()
    with torch.no_grad():
        seed = torch.randn(function(value).shape, generator=generator, dtype=torch.float64)

    def both(value, seed):
        value = value.detach().requires_grad_()
        output = function(value)
        return output.detach(), *torch.autograd.grad(output, value, seed)

    graph = lowered(both, value, seed)
    for got, expected in zip(graph(value, seed), both(value, seed), strict=True):
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= tolerance
    largest = max(node.meta["val"].ndim for node in graph.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor))
    assert largest <= 8
    return graph


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 2},
        {"kernel_size": (1, 2, 2)},
        {"kernel_size": 2, "padding": (0, 1, 1)},
        {"kernel_size": 2, "ceil_mode": True},
        {"kernel_size": 3, "stride": 1, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel_size": (2, 3, 3), "stride": (2, 2, 1), "padding": (0, 1, 1)},
        {"kernel_size": 2, "stride": 3},
        {"kernel_size": 2, "stride": 2, "padding": 1, "dilation": 2},
    ],
    ids=str,
)
def test_max_pools_hand_relevance_to_the_first_maximum(lowered, settings):
    graph = check(lowered, nn.MaxPool3d(**settings), 2, 3, 6, 7, 8, ties=True)
    assert not [node for node in graph.graph.nodes if "indices" in str(node.target)]


def test_max_pools_of_frames_and_adaptive_ones(lowered):
    check(lowered, nn.MaxPool2d(3, stride=2, padding=1), 2, 3, 7, 8, ties=True)
    check(lowered, nn.MaxPool2d(2), 2, 3, 7, 8, ties=True)
    check(lowered, nn.AdaptiveMaxPool3d((2, 1, 4)), 2, 3, 6, 7, 8, ties=True)
    with pytest.raises(InputError, match="windows of different sizes"):
        check(lowered, nn.AdaptiveMaxPool3d((4, 1, 4)), 2, 3, 6, 7, 8)


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool3d(2),
        nn.AvgPool3d(3, stride=2, padding=1),
        nn.AvgPool3d(3, stride=2, padding=1, ceil_mode=True),
        nn.AvgPool3d(3, stride=2, padding=1, count_include_pad=False, ceil_mode=True),
        nn.AvgPool3d((2, 3, 3), stride=1, divisor_override=5),
        nn.AdaptiveAvgPool3d(1),
        nn.AdaptiveAvgPool3d((1, 3, 5)),
    ],
    ids=str,
)
def test_average_pools(lowered, pool):
    check(lowered, pool, 2, 3, 6, 7, 8)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": (5, 9, 16), "mode": "trilinear", "align_corners": False},
        {"size": (5, 9, 16), "mode": "trilinear", "align_corners": True},
        {"size": (1, 2, 3), "mode": "trilinear", "align_corners": False},
        {"scale_factor": 1.7, "mode": "trilinear"},
        {"size": (5, 9, 16), "mode": "nearest"},
    ],
    ids=str,
)
def test_resizing(lowered, settings):
    check(lowered, lambda value: F.interpolate(value, **settings), 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (1, 3, 2), "padding": (0, 1, 0), "groups": 2},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 4},
        {"kernel_size": 1, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2, "stride": (1, 2, 3), "dilation": 2, "groups": 2},
    ],
    ids=str,
)
def test_convolutions(lowered, settings):
    torch.manual_seed(0)
    graph = check(lowered, nn.Conv3d(4, 8, **settings).double().requires_grad_(False), 2, 4, 6, 7, 8)
    assert not [node for node in graph.graph.nodes if "backward" in str(node.target)]


def test_other_layers(lowered):
    torch.manual_seed(0)
    norm = nn.BatchNorm3d(4).double().eval().requires_grad_(False)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    for layer in (
        nn.ConvTranspose3d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        norm,
        nn.LayerNorm(5),
        nn.GELU(),
        nn.SiLU(),
        nn.LeakyReLU(),
        nn.Softmax(1),
    ):
        check(lowered, layer.double().requires_grad_(False), 2, 4, 3, 4, 5)


def test_slices(lowered):
    check(lowered, lambda value: value[:, 1:] * value[:, :-1], 2, 4, 3)
    check(lowered, lambda value: value[:, :, 1::3] + value[:, :, -2:-1], 2, 4, 9)
    check(lowered, lambda value: value[:, -2] * value.select(1, 0), 2, 4, 3)
    check(lowered, lambda value: F.pad(value, (1, 2), mode="replicate").detach() + value.sum(), 2, 4, 3)


def test_mutations_vanish(lowered):
    def function(value):
        out = value * 2
        out += value
        return torch.relu_(out)[:, :1] * 3

    graph = check(lowered, function, 2, 3, 4)
    assert not [node for node in graph.graph.nodes if str(node.target).endswith("_.default")]


def test_what_has_no_rule_is_named(lowered):
    with pytest.raises(InputError, match=r"aten\.cumsum\.default .* cannot be put into a static graph"):
        check(lowered, lambda value: value.cumsum(1), 2, 3)
    assert "cumsum" not in PLAIN


def test_gradients_of_weights_are_refused(lowered):
    convolution = nn.Conv3d(1, 1, 1).double()

    def function(value):
        return torch.autograd.grad(convolution(value).sum(), convolution.weight)

    with pytest.raises(InputError, match="gradients of weights"):
        lowered(function, torch.ones(1, 1, 2, 2, 2).double())
