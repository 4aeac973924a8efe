"""Arithmetic in place: the same values, less memory, and nothing overwritten that is anyone else's."""

import pytest
import torch
from torch.nn import functional as F

import selrel_zennit as sr
from helpers import slow_but
from selrel_deploy import compile_explanation
from selrel_deploy.compiler.passes.in_place import compute_in_place
from selrel_deploy.compiler.rewriting import aten

from ...conftest import clip_with_ties

WEIGHT = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
CONSTANT = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def convolved(x):
    return F.conv2d(x, WEIGHT, padding=1)


@pytest.fixture
def described(lowered):
    """Return a function that traces another one, with the shapes that a compiled graph's nodes carry."""

    def build(function):
        graph = lowered(function, torch.randn(1, 2, 8, 8))
        for node in graph.graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                node.meta |= {"shape": tuple(value.shape), "dtype": value.dtype}
        return graph

    return build


def check(graph, count):
    """Count what is done in place, and see that values, inputs and constants are what they were."""
    x = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    given, constants = x.clone(), {name: value.clone() for name, value in graph.named_buffers()}
    expected = graph(x)
    expected = [value.clone() for value in (expected if isinstance(expected, tuple) else [expected])]
    assert compute_in_place(graph) == count
    for _ in range(2):
        found = graph(x)
        found = found if isinstance(found, tuple) else (found,)
        assert all(torch.equal(value, right) for value, right in zip(found, expected, strict=True))
    assert torch.equal(x, given)
    assert all(torch.equal(value, constants[name]) for name, value in graph.named_buffers())


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (lambda x: (convolved(x).relu() * 2 - CONSTANT).abs() / 3, 5),
        (lambda x: CONSTANT + convolved(x), 1),
        (lambda x: torch.sub(convolved(x), CONSTANT, alpha=2), 1),
        (lambda x: convolved(x).reshape(2, 64) * 2, 1),
        (lambda x: convolved(x).clamp(0) * (x > 0), 2),
        # Of two halves of one array neither may go before both are read.
        (lambda x: sum(half * 2 for half in convolved(x).split(4, 2)), 2),
    ],
    ids=["chain", "second operand", "alpha", "reshaped", "mask", "halves"],
)
def test_what_nothing_reads_again_is_overwritten(described, function, count):
    check(described(function), count)


def read_later(x):
    first = convolved(x)
    return first.relu() * 2, first


def a_view_is_read_later(x):
    first = convolved(x)
    half = first[:, :1]
    return convolved(first.neg()).sum() + half


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (lambda x: x * 2, 0),
        (lambda x: (x.reshape(2, 64) + 1, torch.tensor(1.0)), 0),
        (lambda x: CONSTANT * x[0, 0, 0, 0], 0),
        (read_later, 1),
        (a_view_is_read_later, 0),
        (lambda x: convolved(x)[:, :1] + x, 0),
        (lambda x: (y := convolved(x)) * y.transpose(2, 3), 0),
        (lambda x: convolved(x).sum(1, keepdim=True).expand(1, 2, 8, 8) + x, 0),
        (lambda x: torch.add(x, convolved(x), alpha=2), 0),
        (lambda x: (x > 0) * convolved(x).double(), 1),
        (lambda x: (x > 0) * 2.5, 0),
    ],
    ids=[
        *("input", "view of the input", "constant", "read later", "view read later", "broadcast", "two names"),
        *("expanded", "alpha", "another dtype", "wider dtype"),
    ],
)
def test_what_belongs_to_others_is_left(described, function, count):
    check(described(function), count)


@pytest.mark.parametrize(
    "method", slow_but(["dtd", "lrp_alpha2_beta1", "gradient", "gradcam", "guided_backprop"], "dtd")
)
def test_explanations_are_the_same(method):
    model = sr.load_model("demo")
    graph = compile_explanation(sr.build_method(method, model), clip_with_ties(model.spec, 1))
    overwriting = [
        node for node in graph.form("eager").graph.nodes if node.target in (aten.relu_.default, aten.div_.Tensor)
    ]
    assert overwriting
    assert not [node for node in graph.module.graph.nodes if node.target in (aten.relu_.default, aten.div_.Tensor)]
    for seed in range(2):
        clip, target = clip_with_ties(model.spec, seed), torch.tensor([-1])
        torch.testing.assert_close(graph(clip, target), graph.module(clip, target), rtol=1e-5, atol=1e-7)
