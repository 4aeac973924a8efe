"""Divisors taken once per window: the same values bit by bit, ties and borders included, and fewer divisions."""

import pytest
import torch
from torch.nn import functional as F

from selrel_deploy.compiler.passes.max_pools import FIRST_MAXIMA, by_repeating
from selrel_deploy.compiler.passes.window_divisors import divide_by_window
from selrel_deploy.compiler.rewriting import aten, written_out

GENERATOR = torch.Generator().manual_seed(0)
# Whole numbers: ties in nearly every window.
VALUES = torch.randint(-9, 10, (2, 3, 4, 12, 16), generator=GENERATOR).float()
EPSILON = 1e-3


def backward(values, kernel, relevance=torch.exp, settings=None):
    pooled = F.max_pool3d(values, kernel)
    settings = settings or (kernel, kernel, [0] * 3, [1] * 3)
    return FIRST_MAXIMA(relevance(pooled * 0.1), values, pooled, *map(list, settings))


def stabilised(values):
    return values + torch.where(values < 0, -EPSILON, EPSILON)


def borders(*shape, seed=1):
    """Return an array with one value inside and others at the borders of the last two axes, as padding makes it."""
    inner = torch.randn(*shape[:2], 1, 3, 3, generator=torch.Generator().manual_seed(seed)).expand(*shape[:3], 3, 3)
    for axis in (3, 4):
        first, middle, last = inner.split(1, axis)
        inner = torch.cat([first, middle.repeat_interleave(shape[axis] - 2, axis), last], axis)
    return inner.contiguous()


INSIDE = borders(*VALUES.shape)
EVERYWHERE = torch.randn(VALUES.shape, generator=GENERATOR)
PER_CHANNEL = torch.randn(1, 3, 1, 1, 1, generator=GENERATOR)
PLANE = torch.randn(12, 16, generator=GENERATOR)


def divisions(graph):
    return [node.meta["val"].numel() for node in graph.graph.find_nodes(op="call_function", target=aten.div.Tensor)]


@pytest.mark.parametrize("kernel", [(1, 2, 2), (2, 2, 2)], ids=["plane", "box"])
@pytest.mark.parametrize(
    "divisor",
    [
        stabilised,
        lambda values: stabilised(values - INSIDE),
        lambda values: stabilised(values * PER_CHANNEL - EVERYWHERE),
        lambda values: stabilised(PLANE - values) * PER_CHANNEL,
        lambda values: stabilised(values - PER_CHANNEL.expand(VALUES.shape)),
        lambda values: values.abs() + 1,
    ],
    ids=["epsilon", "borders", "everywhere", "plane", "expanded", "numbers"],
)
def test_the_same_values_by_fewer_divisions(lowered, kernel, divisor):
    def function(values):
        return backward(values, kernel) / divisor(values)

    graph = lowered(function, VALUES)
    assert divisions(graph) == [VALUES.numel()]
    assert divide_by_window(graph) == 1
    assert divisions(graph) == [VALUES.numel() // (kernel[0] * 4)]
    made = written_out(graph, FIRST_MAXIMA, by_repeating)
    for values in (VALUES, -VALUES, EVERYWHERE, torch.zeros_like(VALUES)):
        assert torch.equal(made(values), function(values))


def test_pools_of_images(lowered):
    images = VALUES[:, :, 0]

    def function(values):
        pooled = F.max_pool2d(values, 2)
        return FIRST_MAXIMA(pooled.exp(), values, pooled, [2] * 2, [2] * 2, [0] * 2, [1] * 2) / stabilised(
            values - PLANE
        )

    graph = lowered(function, images)
    assert divide_by_window(graph) == 1
    assert torch.equal(written_out(graph, FIRST_MAXIMA, by_repeating)(images), function(images))


def test_a_border_alone_is_looked_up(lowered):
    graph = lowered(lambda values: backward(values, (1, 2, 2)) / stabilised(values - INSIDE), VALUES)
    divide_by_window(graph)
    pools = graph.graph.find_nodes(op="call_function", target=aten.avg_pool3d.default)
    # Two rows above and below, and of what is between them two columns left and right.
    voxels = 2 * 2 * 16 + 2 * 2 * 8
    assert sum(node.args[0].meta["val"].numel() for node in pools) == voxels * VALUES[..., 0, 0].numel()


@pytest.mark.parametrize(
    "function",
    [
        # Nothing is divided; a number, a constant, another array divides; the relevance divides.
        lambda values: backward(values, (1, 2, 2)) * stabilised(values),
        lambda values: backward(values, (1, 2, 2)) / 3,
        lambda values: backward(values, (1, 2, 2)) / INSIDE,
        lambda values: backward(values, (1, 2, 2)) / stabilised(F.relu(values).flip(3)),
        lambda values: 1 / (backward(values, (1, 2, 2)) + 1),
        # It is needed everywhere: what is divided, or the divisor.
        lambda values: (back := backward(values, (1, 2, 2))) / stabilised(values) + back,
        lambda values: backward(values, (1, 2, 2)) / (z := stabilised(values)) + z,
        # Windows that are not two by two, overlap, or leave a rest.
        lambda values: backward(values, (1, 4, 4)) / stabilised(values),
        lambda values: backward(values, (3, 2, 2)) / stabilised(values),
        lambda values: FIRST_MAXIMA(
            F.max_pool3d(values, 3, 1, 1), values, F.max_pool3d(values, 3, 1, 1), [3] * 3, [1] * 3, [1] * 3, [1] * 3
        ) / stabilised(values),
    ],
    ids=["product", "number", "constant", "other", "divisor", "needed", "divisor needed", "four", "rest", "overlap"],
)  # fmt: skip
def test_what_has_to_be_divided_everywhere_stays(lowered, function):
    graph = lowered(function, VALUES)
    assert divide_by_window(graph) == 0
    assert torch.equal(graph(VALUES), function(VALUES))


def test_a_piece_of_what_the_pool_takes_a_piece_of_is_no_divisor_of_its_windows(lowered):
    def function(values):
        first, second = torch.cat([values, values + 1], 1).split(3, 1)
        return backward(first, (1, 2, 2)) / stabilised(second)

    graph = lowered(function, VALUES)
    assert divide_by_window(graph) == 0
    assert divisions(graph) == [VALUES.numel()]
