"""What depends on constants alone is computed once, exactly, and held once."""

import torch
from torch.nn import functional as F

from selrel_deploy.compiler.passes.fold import fold, pack_constants
from selrel_deploy.compiler.passes.simplify import simplify
from selrel_deploy.compiler.rewriting import constant_bytes, count_operations

WEIGHT = torch.randn(4, 3, 3, 3, 3, generator=torch.Generator().manual_seed(0))


def test_constants_are_computed_once(lowered):
    graph = lowered(lambda x: x * WEIGHT.clamp(min=0).flip(0).sum() + torch.arange(3), torch.ones(3))
    expected = graph(torch.ones(3))
    assert fold(graph) == 2
    assert set(count_operations(graph)) == {"aten.mul.Tensor", "aten.add.Tensor"}
    assert torch.equal(graph(torch.ones(3)), expected)


def test_products_are_rounded_once(lowered):
    box = torch.full((1, 3, 6, 6, 6), 153.3)
    graph = lowered(lambda x: x - F.conv3d(box, WEIGHT, padding=1), torch.zeros(1, 4, 6, 6, 6))
    fold(graph)
    exact = -F.conv3d(box.double(), WEIGHT.double(), padding=1).float()
    assert torch.equal(graph(torch.zeros(1, 4, 6, 6, 6)), exact)


def test_equal_constants_are_held_once(lowered):
    other = WEIGHT.clone()
    graph = lowered(lambda x: x * WEIGHT + x * other, torch.ones_like(WEIGHT))
    fold(graph)
    assert constant_bytes(graph) == WEIGHT.numel() * 4


def test_what_is_cheap_to_make_stays_an_operation(lowered):
    graph = lowered(
        lambda x: x.where(x > 0, torch.zeros(64, 64)) @ torch.ones(1, 64).expand(64, 64), torch.ones(64, 64)
    )
    fold(graph)
    assert constant_bytes(graph) == 64 * 4


def test_a_border_pattern_is_held_as_one(lowered):
    box = torch.full((1, 3, 16, 40, 40), 153.0)
    weight = torch.randn(16, 3, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    x = torch.randn(1, 16, 16, 40, 40)
    graph = lowered(lambda x: x - F.conv3d(box, weight, padding=1), x)
    fold(graph)
    before, expected = constant_bytes(graph), graph(x)
    saved = pack_constants(graph)
    assert before == x.numel() * 4
    # 3×3×3 distinct voxels per channel remain.
    assert constant_bytes(graph) == 16 * 27 * 4
    assert saved == before - 16 * 27 * 4
    assert torch.equal(graph(x), expected)


def test_random_weights_are_not_packed(lowered):
    weight = torch.randn(600, 600)
    graph = lowered(lambda x: x @ weight, torch.ones(1, 600))
    fold(graph)
    assert pack_constants(graph) == 0


def test_a_linear_layer_and_its_backward_share_one_weight(lowered):
    weight = torch.randn(6, 4)

    def function(x, r):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(F.linear(x, weight), x, r)[0] * F.linear(x.detach(), weight).sum()

    graph = lowered(function, torch.ones(1, 4), torch.ones(1, 6))
    simplify(graph)
    fold(graph)
    assert constant_bytes(graph) == weight.numel() * 4
