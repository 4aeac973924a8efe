"""Convolutions that are combined: the same values from fewer of them, and only where that holds."""

import pytest
import torch
from torch.nn.functional import conv3d, linear

from selrel_deploy.compiler.passes.combine import absorb_offsets, combine
from selrel_deploy.compiler.passes.simplify import simplify
from selrel_deploy.compiler.rewriting import aten, count_convolutions, count_operations

from ...conftest import norm_relative, weights


@pytest.fixture
def combined(lowered):
    """Return a function: (function of one tensor, example) → convolutions before, after, and the combined graph."""

    def build(function, example):
        graph = lowered(function, example)
        before = count_convolutions(graph)
        went = combine(graph)
        assert before - count_convolutions(graph) == went
        for seed in range(2):
            value = torch.randn(example.shape, generator=torch.Generator().manual_seed(seed)).to(example)
            got, expected = graph(value), function(value)
            assert got.shape == expected.shape
            assert norm_relative(got, expected) <= (1e-12 if example.dtype == torch.float64 else 1e-5)
        return before, count_convolutions(graph), graph

    return build


VALUE = torch.zeros(2, 5, 4, 6, 7, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_last_step_of_zbox_is_one_convolution(combined, dtype):
    w, plus, minus = weights(5, 3, 3, 3, 3, dtype=dtype).transpose(0, 1), *weights(2, 3, 5, 3, 3, 3, dtype=dtype)
    low, high = weights(1, 3, 1, 1, 1, dtype=dtype), weights(1, 3, 1, 1, 1, dtype=dtype) + 1

    def zbox(value):
        back = [conv3d(value, weight, padding=1) for weight in (w, plus, minus)]
        return (value[:, :3] * back[0] - (low * back[1] + high * back[2])).sum(1)

    before, after, graph = combined(zbox, VALUE.to(dtype))
    assert (before, after) == (3, 1)
    # Three channels, one sum of channels, three places of the kernel each.
    assert [tuple(value.shape) for value in graph.buffers() if value.ndim == 5] == [(12, 5, 1, 3, 3)]


def padded(kernel, padding):
    return lambda value: conv3d(value, kernel, padding=padding)


def test_geometry_is_kept(combined):
    kernel = weights(2, 5, 2, 3, 5)
    assert combined(lambda value: conv3d(value, kernel, padding=(1, 0, 2)), VALUE)[:2] == (1, 1)
    assert combined(lambda value: conv3d(value, kernel, padding=(0, 2, 3), dilation=(2, 1, 1)), VALUE)[:2] == (1, 1)
    assert combined(lambda value: conv3d(value, kernel, stride=(1, 2, 1)), VALUE)[:2] == (1, 1)
    assert combined(lambda value: conv3d(value, kernel, stride=2, padding=2, dilation=(1, 1, 2)), VALUE)[:2] == (1, 1)
    # Places of the kernel that see padding alone.
    for frames, places in ((1, 3), (1, 5), (2, 7), (4, 1)):
        long, padding = weights(2, 5, places, 3, 3), (max(places // 2, 1), 1, 1)
        value = torch.zeros(2, 5, frames, 6, 7, dtype=torch.float64)
        assert combined(padded(long, padding), value)[:2] == (1, 1)
    grouped = weights(5, 1, 3, 3, 3)
    assert combined(lambda value: conv3d(value, grouped, groups=5), VALUE)[:2] == (1, 1)


def test_a_convolution_without_bias_serves_the_one_with(combined):
    kernel, bias = weights(40, 5, 3, 3, 3), weights(40)
    for function in (
        lambda value: conv3d(value, kernel, bias).relu() + conv3d(value, kernel),
        lambda value: conv3d(value, kernel).relu() + conv3d(value, kernel, bias),
    ):
        assert combined(function, VALUE)[:2] == (2, 1)


def test_what_another_needs_or_differs_stays(combined):
    a, b, wide = weights(40, 5, 3, 3, 3), weights(40, 5, 3, 3, 3) + 1, weights(40, 5, 1, 1, 1)

    def used_twice(value):
        first, second = conv3d(value, a), conv3d(value, b)
        return (first + second) * first

    assert combined(used_twice, VALUE)[:2] == (2, 2)
    assert combined(lambda value: conv3d(value, a) + conv3d(value.relu(), b), VALUE)[:2] == (2, 2)
    assert combined(lambda value: conv3d(value, a, padding=1) - conv3d(value, wide), VALUE)[:2] == (2, 2)
    spread = {"padding": 2, "dilation": 2}
    assert combined(lambda value: conv3d(value, a, padding=1) - conv3d(value, b, **spread), VALUE)[:2] == (2, 2)
    assert combined(lambda value: conv3d(value, a) - conv3d(value, b), VALUE)[:2] == (2, 1)
    # A factor per place is none of the weight's.
    field = weights(1, 40, 2, 4, 5)
    assert combined(lambda value: conv3d(value, a) * field, VALUE)[:2] == (1, 1)
    # The sum over another axis, too, stays a sum.
    assert combined(lambda value: conv3d(value, a).sum(2), VALUE)[:2] == (1, 1)


def test_a_stabiliser_is_a_bias(lowered):
    kernel, matrix, bias = weights(40, 5, 3, 3, 3), weights(40, 7), weights(40)
    values, rows = weights(2, 5, 4, 6, 7), weights(2, 7)

    def sums(function, value=values):
        graph = lowered(function, value)
        simplify(graph)
        absorbed = absorb_offsets(graph)
        assert norm_relative(graph(value), function(value)) <= 1e-15
        left = count_operations(graph)[str(aten.add.Tensor)]
        assert absorbed + left == 1
        return left

    assert sums(lambda value: conv3d(value, kernel) + 1e-6) == 0
    assert sums(lambda value: linear(value, matrix) + 1e-6, rows) == 0
    # Another bias, another use of the product, another sum, few bits: it stays.
    assert sums(lambda value: conv3d(value, kernel, bias) + 1e-6) == 1
    assert sums(lambda value: (product := conv3d(value, kernel)).add(1e-6) / product) == 1
    assert sums(lambda value: (product := conv3d(value, kernel)).add(product.relu(), alpha=2)) == 1
    assert sums(lambda value: conv3d(value.bfloat16(), kernel.bfloat16()).double() + 1e-6) == 1
