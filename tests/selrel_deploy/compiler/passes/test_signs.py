"""The sign analysis against what values turn out to be, and what it removes."""

import pytest
import torch
from torch.nn import functional as F

from selrel_deploy.compiler.passes.signs import Sign, eliminate_zeros, find_signs, negated, product
from selrel_deploy.compiler.passes.simplify import simplify
from selrel_deploy.compiler.rewriting import count_convolutions, count_operations

SAMPLES = {Sign.ZERO: [0.0], Sign.POSITIVE: [0.0, 2.0], Sign.NEGATIVE: [-3.0, 0.0], Sign.ANY: [-3.0, 0.0, 2.0]}


def seen(values):
    return Sign(Sign.POSITIVE * any(v > 0 for v in values) | Sign.NEGATIVE * any(v < 0 for v in values))


@pytest.mark.parametrize("first", SAMPLES)
@pytest.mark.parametrize("second", SAMPLES)
def test_the_algebra_is_what_multiplication_does(first, second):
    assert product(first, second) == seen([a * b for a in SAMPLES[first] for b in SAMPLES[second]])
    assert negated(first) == seen([-a for a in SAMPLES[first]])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.relu() + x.square(),
        lambda x: x.abs() - x.relu(),
        lambda x: x.clamp(min=0) * x.clamp(max=0),
        lambda x: x.clamp(-1, 2) + 1,
        lambda x: x.clamp(min=0.5),
        lambda x: x.clamp(max=-0.5),
        lambda x: x.clamp(min=-1),
        lambda x: x.clamp(max=1),
        lambda x: x.relu().clamp(min=0.5) - x.relu().clamp(max=1),
        lambda x: (-x.relu()).clamp(min=-1) + (-x.relu()).clamp(max=0),
        lambda x: x.relu().clamp(max=-0.25),
        lambda x: (-x.relu()).clamp(max=-0.5),
        lambda x: F.max_pool2d(x.relu(), 2, padding=1),
        lambda x: F.avg_pool2d(-x.relu(), 2),
        lambda x: F.pad(x.relu(), (1, 1), value=-1.0),
        lambda x: torch.cat([x.relu(), -x.abs()], 1),
        lambda x: torch.maximum(x, x.relu()),
        lambda x: torch.where(x > 0, x.relu(), -x.relu()),
        lambda x: x.relu() / (x.relu() + 1e-6),
        lambda x: F.conv2d(x.relu(), torch.ones(1, 2, 1, 1), -torch.ones(1)),
        lambda x: (x.relu() @ torch.ones(4, 4).clamp(min=0)).mean((2, 3)),
        lambda x: x.sub(x.relu(), alpha=-1.0),
        lambda x: x.relu().pow(3) + x.exp() + x.sigmoid(),
        lambda x: x.neg().relu().sqrt().neg(),
        lambda x: torch.ops.aten.div.Scalar(x.relu(), 8) + torch.ops.aten.mul.Scalar(x.relu(), 2),
        lambda x: torch.ops.aten.sub.Scalar(torch.ops.aten.add.Scalar(-x.relu(), -1), 2),
    ],
)
def test_no_value_has_a_sign_that_was_ruled_out(lowered, function):
    graph = lowered(function, torch.randn(1, 2, 4, 4))
    signs = find_signs(graph)
    (result,) = graph.graph.output_node().all_input_nodes
    clips = [torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) * 3 for seed in range(20)]
    outputs = [graph(clip) for clip in clips]
    for values in outputs:
        assert not (values > 0).any() or signs[result] & Sign.POSITIVE
        assert not (values < 0).any() or signs[result] & Sign.NEGATIVE
    eliminate_zeros(graph)
    for clip, values in zip(clips, outputs, strict=True):
        assert torch.equal(graph(clip), values)


@pytest.mark.parametrize(
    ("values", "sign"),
    [
        ([0.0, -0.0], Sign.ZERO),
        ([0.0, 1e-30], Sign.POSITIVE),
        ([-1e-30, 0.0], Sign.NEGATIVE),
        ([-1e-30, 1.0], Sign.ANY),
        ([float("nan"), 1.0], Sign.ANY),
    ],
)
def test_constants_are_looked_at(lowered, values, sign):
    constant = torch.tensor(values)
    signs = find_signs(lowered(lambda x: x + constant, torch.ones(2)))
    assert [signs[node] for node in signs if node.op == "get_attr"] == [sign]


def test_the_negative_branch_of_z_plus_vanishes(lowered):
    weight = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))

    def z_plus(x):
        x = x.relu()
        positive = F.conv2d(x.clamp(min=0), weight.clamp(min=0))
        return positive + F.conv2d(x.clamp(max=0), weight.clamp(max=0))

    graph = lowered(z_plus, torch.randn(1, 2, 5, 5))
    eliminate_zeros(graph)
    simplify(graph)
    assert count_convolutions(graph) == 1
    x = torch.randn(1, 2, 5, 5)
    assert torch.equal(graph(x), z_plus(x))


def test_signed_input_keeps_both_branches(lowered):
    weight = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))

    def z_plus(x):
        return F.conv2d(x.clamp(min=0), weight.clamp(min=0)) + F.conv2d(x.clamp(max=0), weight.clamp(max=0))

    graph = lowered(z_plus, torch.randn(1, 2, 5, 5))
    eliminate_zeros(graph)
    simplify(graph)
    assert count_convolutions(graph) == 2


def test_a_convolution_of_zero_leaves_its_bias(lowered):
    weight, bias = torch.randn(3, 2, 3, 3), torch.tensor([1.0, -2.0, 0.5])
    graph = lowered(lambda x: F.conv2d(x.relu().clamp(max=0), weight, bias), torch.randn(1, 2, 5, 5))
    eliminate_zeros(graph)
    assert count_convolutions(graph) == 0
    assert torch.equal(graph(torch.randn(1, 2, 5, 5)), bias[None, :, None, None].expand(1, 3, 3, 3))


def test_the_stabiliser_in_fewer_operations(lowered):
    from zennit.core import stabilize

    for function, operations in (
        (lambda x: stabilize(x.relu()), {"aten.relu.default": 1, "aten.add.Tensor": 1}),
        (lambda x: stabilize(x), {"aten.lt.Scalar": 1, "aten.where.self": 1, "aten.add.Tensor": 1}),
    ):
        graph = lowered(function, torch.randn(7))
        eliminate_zeros(graph)
        counts = count_operations(graph)
        assert {name: count for name, count in counts.items() if "scalar_tensor" not in name} == operations
        for x in (torch.tensor([-1.0, 0.0, -0.0, 1e-9, 3.0, 1e-30, 1.0]), torch.randn(7)):
            assert torch.equal(graph(x), function(x))
