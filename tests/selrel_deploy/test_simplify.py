"""Simplified graphs have fewer operations and the same values."""

import pytest
import torch
from torch.nn import functional as F

from selrel_deploy.compiler.rewriting import count_convolutions, count_operations
from selrel_deploy.compiler.simplify import simplify

WEIGHT = torch.randn(2, 2, 1, 1, generator=torch.Generator().manual_seed(0))
SCALE = torch.tensor([2.0, 3.0]).reshape(1, 2, 1, 1)


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: F.conv2d(x, WEIGHT).relu() + F.conv2d(x, WEIGHT).relu(), 3),
        (lambda x: x + 0, 0),
        (lambda x: 0 + x * 1 / 1, 0),
        (lambda x: x - torch.zeros_like(x), 0),
        (lambda x: torch.zeros_like(x) - x, 1),
        (lambda x: x.reshape(4, 4).reshape(2, 8).reshape(x.shape), 0),
        (lambda x: x[:, :, :].to(x.dtype), 0),
        (lambda x: x * SCALE.expand(1, 2, 2, 4), 1),
        (lambda x: x.reshape(4, 4).t().t().relu(), 2),
        (lambda x: x + torch.zeros(3, 1, 1, 1), 2),
        (lambda x: (x > 0) + 0, 2),
    ],
)
def test_what_changes_nothing_goes(lowered, function, left):
    graph = lowered(function, torch.randn(1, 2, 2, 4))
    simplify(graph)
    x = torch.randn(1, 2, 2, 4)
    result, expected = graph(x), function(x)
    assert result.dtype == expected.dtype
    assert torch.equal(result, expected)
    assert sum(count_operations(graph).values()) == left


def test_numbers_of_different_types_are_not_the_same(lowered):
    graph = lowered(lambda x: (x + 1) + (x + 1.0), torch.ones(3, dtype=torch.int64))
    simplify(graph)
    assert count_operations(graph)["aten.add.Tensor"] == 3
    assert count_convolutions(graph) == 0
