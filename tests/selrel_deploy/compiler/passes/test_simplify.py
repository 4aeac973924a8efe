"""Simplified graphs have fewer operations and the same values."""

import pytest
import torch
from torch.nn import functional as F

from selrel_deploy.compiler.passes.simplify import multiply_for_choices, simplify
from selrel_deploy.compiler.rewriting import count_convolutions, count_operations

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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_choice_of_two_numbers_is_a_product_where_that_is_exact(lowered, dtype):
    x = torch.randn(1, 2, 2, 4).to(dtype)
    x[0, 0, 0, :2] = torch.tensor([0.0, -0.0])

    def left(function):
        graph = lowered(function, x)
        changed = multiply_for_choices(graph)
        result, expected = graph(x), function(x)
        assert result.dtype == expected.dtype
        assert torch.equal(result, expected)
        choices = count_operations(graph)["aten.where.self"]
        assert changed + choices == 1
        return choices

    def number(value):
        return torch.scalar_tensor(value, dtype=dtype)

    assert left(lambda x: torch.where(x < 0, number(-1e-6), number(1e-6))) == 0
    assert left(lambda x: torch.where(x == 0, number(1.0), number(0.0))) == 0
    # 1e-6 − 1e20 + 1e20 is 0; another array; no floating-point numbers.
    assert left(lambda x: torch.where(x < 0, number(1e-6), number(1e20))) == 1
    assert left(lambda x: torch.where(x < 0, number(0.0), x)) == 1
    one, two = (torch.scalar_tensor(value, dtype=torch.int64) for value in (1, 2))
    assert left(lambda x: torch.where(x < 0, one, two)) == 1
