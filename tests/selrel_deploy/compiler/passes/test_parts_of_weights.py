"""The positive and negative weights of linear layers: not held beside the whole, multiplied by some rows at a time."""

import pytest
import torch
from torch.nn import functional as F

import selrel_zennit as sr
from helpers import slow_but
from selrel_deploy import compile_explanation
from selrel_deploy.compiler.passes import parts_of_weights
from selrel_deploy.compiler.passes.fold import fold
from selrel_deploy.compiler.passes.parts_of_weights import clamp_at_run_time, clamp_now, clamped_linear
from selrel_deploy.compiler.passes.simplify import simplify
from selrel_deploy.compiler.rewriting import aten, constant_bytes, count_operations

from ...conftest import clip_with_ties, norm_relative

WEIGHT = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
PARTS = {"positive": WEIGHT.clamp(0), "negative": WEIGHT.clamp(None, 0)}
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def made(lowered):
    """Return a function that makes a graph as the compiler has it when weights are parted."""

    def build(function):
        graph = lowered(function, X)
        simplify(graph)
        fold(graph)
        simplify(graph)
        return graph

    return build


def forward_and_back(part):
    return lambda x: F.linear(F.linear(x, WEIGHT), WEIGHT.t()) + F.linear(x, part) @ part


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_part_is_not_held_beside_the_whole(made, part):
    graph = made(forward_and_back(part))
    expected, held = graph(X), constant_bytes(graph)
    assert clamp_at_run_time(graph) == part.numel() * 4
    assert constant_bytes(graph) == held - part.numel() * 4
    assert count_operations(graph)["aten.clamp.default"] == 2
    assert torch.equal(graph(X), expected)
    assert clamp_now(graph) == 1
    assert constant_bytes(graph) == held
    assert "aten.clamp.default" not in count_operations(graph)
    assert torch.equal(graph(X), expected)


def test_a_part_in_another_dtype(made):
    part = WEIGHT.clamp(0).bfloat16()
    graph = made(lambda x: F.linear(x, WEIGHT).sum() + F.linear(x.bfloat16(), part).float())
    expected = graph(X)
    assert clamp_at_run_time(graph) == part.numel() * 2
    assert torch.equal(graph(X), expected)
    assert clamp_now(graph) == 2
    assert torch.equal(graph(X), expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.linear(x, WEIGHT) + F.linear(x, WEIGHT.clamp(0) * 1.5),
        lambda x: (x[:, None] * (WEIGHT > 0)).sum(2) + F.linear(x, (WEIGHT > 0).float()),
        lambda x: F.linear(x, WEIGHT.clamp(0)) + F.linear(x, WEIGHT.clamp(None, 0)),
        lambda x: F.linear(x, WEIGHT) + F.linear(x, PARTS["positive"]) + (PARTS["positive"] * x.sum()).sum(1),
        lambda x: F.linear(x, WEIGHT).sum() + F.linear(PARTS["positive"], x).sum(),
    ],
    ids=["scaled", "a mask", "no whole", "used otherwise", "no weight"],
)
def test_other_constants_are_kept(made, function):
    graph = made(function)
    held = constant_bytes(graph)
    assert clamp_at_run_time(graph) == 0
    assert constant_bytes(graph) == held


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("low", "high"), [(0.0, None), (None, 0.0)])
def test_rows_at_a_time(monkeypatch, dtype, low, high):
    monkeypatch.setattr(parts_of_weights, "_BLOCK", 7 * 20)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 20, generator=generator)
    clamped = weight.clamp(low, high).to(dtype)
    for backward in (False, True):
        values = torch.rand(2, 300 if backward else 20, generator=generator).to(dtype)
        found = clamped_linear(values, weight, low, high, dtype, backward)
        exact = values.double() @ (clamped.double() if backward else clamped.double().t())
        assert found.dtype == dtype
        # A sum that was rounded to bfloat16 at each of 43 blocks would be off by more.
        assert norm_relative(found.double(), exact) <= 2 * torch.finfo(dtype).eps
        torch.library.opcheck(clamped_linear, (values, weight, low, high, dtype, backward))


@pytest.mark.parametrize("precision", slow_but(["fp32", "fp32+bf16", "bf16"], "fp32"))
def test_an_explanation_holds_each_linear_weight_once(precision):
    model = sr.load_model("networks:small_c3d", "own")
    clip = clip_with_ties(model.spec, 1)
    graph = compile_explanation(sr.build_method("dtd", model), clip, precision=precision)
    linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    before, after = (report.constant_bytes for report in graph.passes[-4:-2])
    saved = before - after
    assert saved > 0
    if precision == "fp32":
        assert saved == sum(weight.numel() * weight.element_size() for weight in linear)
    assert count_operations(graph.form("eager"))["selrel.clamped_linear.default"] == 2 * len(linear)
    assert aten.linear.default in {node.target for node in graph.form("compiled").graph.nodes}
    found, expected = (run(clip, torch.tensor([-1])) for run in (graph, graph.form("compiled")))
    torch.testing.assert_close(found, expected, rtol=1e-3 if "bf16" in precision else 1e-5, atol=1e-7)
