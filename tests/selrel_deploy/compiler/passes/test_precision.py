"""Precisions: what runs in which, what int8 is allowed for, and how far relevance moves."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import nn
from zennit.attribution import Gradient as ZennitGradient
from zennit.composites import SpecialFirstLayerMapComposite, layer_map_base
from zennit.rules import AlphaBeta, Epsilon
from zennit.types import Convolution

import selrel_zennit as sr
from selrel_deploy import open_runner
from selrel_deploy.compiler import compile_explanation
from selrel_deploy.compiler.passes.kernels import int8_convolution
from selrel_deploy.compiler.passes.precision import quantised_weight, quantized
from selrel_deploy.precisions import PRECISIONS, RUNS, check_runs, split_precision
from selrel_zennit.composites import DTD

from ...conftest import clip_with_ties, norm_relative, varied

aten = torch.ops.aten
SPEC = sr.ClipSpec(frames=6, short_side=8, crop=8)


def network(scale=1.0):
    """Return three convolutions, a pool and two linear layers, with ``scale`` times their weights."""
    torch.manual_seed(0)
    layers = [nn.Conv3d(3, 20, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(20, 24, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv3d(24, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 48, 16), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(16, 5)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(scale)
    return model


def dtd(model):
    low, high = (torch.from_numpy(bound) for bound in SPEC.bounds())
    return ZennitGradient(model, DTD(low, high))


def compiled(attributor, precision):
    return compile_explanation(attributor, torch.zeros(1, *SPEC.shape), sr.MotionSelection(n_sigma=2.0), precision)


def explain(graph, clip, target=3):
    return graph(clip, torch.tensor([target]))[2]


@pytest.fixture(scope="module")
def graphs():
    """Return the network's graph in every precision."""
    attributor = dtd(network())
    return {precision: compiled(attributor, precision) for precision in PRECISIONS}


def products(graph, dtype, kinds=(aten.convolution.default, aten.linear.default, aten.mm.default)):
    """Return the convolutions and linear layers whose result has a dtype."""
    return [node for node in graph.module.graph.nodes if node.target in kinds and node.meta["dtype"] == dtype]


# What relevance moves by, norm-relative: worst seen 2.1e-3, 7e-4, 6e-3; a rounded forward pass may choose another
# winner in a pool.
LIMITS = {"bf16": 0.01, "fp16": 0.003, "int8": 0.02}


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_relevance_stays_close(graphs, precision):
    graph = graphs[precision]
    forward, low = split_precision(precision)
    assert graph.precision == precision
    assert [report.name for report in graph.passes][-6:] == [
        "precision",
        "simplify",
        "biases",
        "parts",
        "plain",
        "compiled",
    ]
    limit = LIMITS[low] if forward == "fp32" else 0.1
    for seed in range(3):
        clip = clip_with_ties(SPEC, seed)
        outputs, exact = graph(clip, torch.tensor([3])), explain(graphs["fp32"], clip)
        assert [value.dtype for value in outputs] == [torch.float32, torch.int64, *[torch.float32] * 2, torch.bool]
        assert 0 < norm_relative(outputs[2], exact) <= limit
        # A pool's relevance goes to one winner, also where rounding makes ties: none is handed out twice.
        assert float(outputs[2].sum()) == pytest.approx(float(exact.sum()), rel=0.02)


def test_first_and_last_layers_stay_float32(graphs):
    every = len(products(graphs["fp32"], torch.float32))
    # Forward: three convolutions and two linear layers. Relevance: z⁺ of two each, there and back, and one step of z^B.
    assert every == 5 + 2 * 4 + 1
    for precision, low in (("fp32+bf16", 8), ("fp32+fp16", 8), ("bf16", 8 + 3), ("fp16", 8 + 3)):
        graph = graphs[precision]
        dtype = torch.bfloat16 if "bf16" in precision else torch.float16
        assert len(products(graph, dtype)) == low
        assert len(products(graph, torch.float32)) == every - low
        full = [node for node in graph.module.graph.nodes if node.meta.get("dtype") == torch.float32]
        assert {node.target for node in full} >= {aten.div.Tensor, aten.sqrt.default}
        assert not [node for node in graph.module.graph.nodes if node.target == aten.div.Tensor and node not in full]
        # Weights of both dtypes, none twice.
        assert graph.passes[-1].constant_bytes <= graphs["fp32"].passes[-1].constant_bytes
    assert graphs["bf16"].passes[-1].constant_bytes < 0.6 * graphs["fp32"].passes[-1].constant_bytes


@pytest.mark.parametrize("precision", ["fp32+int8", "bf16+int8", "fp16+int8"])
def test_int8_is_for_what_cannot_cancel(graphs, precision):
    graph = graphs[precision].module
    found = []

    class Watch(torch.fx.Interpreter):
        def run_node(self, node):
            if node.target == quantized.quantize_per_tensor.default:
                found.append(float(self.env[node.args[0]].min()))
                assert float(self.env[node.args[0]].max()) == pytest.approx(1, abs=1e-6)
            return super().run_node(node)

    Watch(graph).run(clip_with_ties(SPEC, 1), torch.tensor([2]))
    assert len(found) == 4
    assert min(found) >= 0
    weights = [value for value in graph.buffers() if value.dtype == torch.int8 and value.ndim == 5]
    assert len(weights) == 4
    assert min(int(value.min()) for value in weights) >= 0
    assert max(int(value.max()) for value in weights) == 63


def test_int8_where_relevance_may_cancel_is_refused():
    model = network()
    with pytest.raises(sr.InputError, match=r"cannot cancel.*in or after \d, its values may have both signs; use fp32"):
        compiled(ZennitGradient(model), "fp32+int8")
    with pytest.raises(sr.InputError, match=r"use bf16$"):
        compiled(ZennitGradient(model), "bf16+int8")
    # α2β1: each branch forward is of one sign, and relevance going backward is not.
    rules = [*layer_map_base(), (Convolution, AlphaBeta(2, 1)), (nn.Linear, Epsilon())]
    composite = SpecialFirstLayerMapComposite(rules, [(Convolution, AlphaBeta(2, 1))])
    graph = compiled(ZennitGradient(model, composite), "fp32+int8")
    steps = [node for node in graph.module.graph.nodes if node.target == quantized.quantize_per_tensor.default]
    assert 0 < len(steps) <= 4
    # One layer: what there is reads the clip or gives the map.
    one = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 384, 5)).eval()
    with pytest.raises(sr.InputError, match="there are none"):
        compiled(dtd(one), "fp32+int8")


@pytest.mark.parametrize("precision", ["fp32+fp16", "fp32+int8"])
def test_small_and_zero_relevance_does_not_vanish(precision):
    # Weights times 100: activations of 1e7, relevance over z of 1e-10, far below what fp16 holds.
    attributor = dtd(network(100.0))
    graph, exact = compiled(attributor, precision), compiled(attributor, "fp32")
    clip = clip_with_ties(SPEC, 2)
    assert norm_relative(explain(graph, clip), explain(exact, clip)) <= 0.02
    assert torch.isfinite(explain(graph, torch.zeros_like(clip))).all()


@pytest.mark.slow
def test_every_kind_of_layer():
    model = varied(torch.float32)
    attributor = sr.build_method("dtd", model)
    clip = clip_with_ties(model.spec, 1)
    exact, *others = (
        explain(compile_explanation(attributor, clip, precision=precision), clip)
        for precision in ("fp32", "bf16", "fp16", "fp32+int8")
    )
    # Four channels: few terms share an error. Worst seen: 0.03, 0.004, 0.02.
    for value, limit in zip(others, (0.15, 0.05, 0.1), strict=True):
        assert 0 < norm_relative(value, exact) <= limit


@pytest.mark.parametrize("precision", ["fp32+int8", "bf16+int8", "fp16+int8"])
def test_the_eager_runner_computes_in_int8(graphs, precision):
    clip = clip_with_ties(SPEC, 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run = open_runner(graphs[precision], "eager")
        got = run(clip.numpy(), 3)
    assert run.precision == precision
    assert sum(event.count for event in profile.key_averages() if event.key == "onednn::qconv_pointwise") == 4
    # The graph says the same numbers in float arithmetic; a rounding to bfloat16 may fall to the other side.
    with torch.no_grad():
        spelled_out = graphs[precision].module(clip, torch.tensor([3]))[2]
    assert norm_relative(torch.from_numpy(got.relevance), spelled_out) <= 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_convolution_by_hand(dtype):
    rng = np.random.default_rng(1)
    values, weight = rng.integers(0, 256, (2, 5, 6, 7)), rng.random((3, 2, 3, 3, 3)).astype(np.float32)
    # The largest values there are, and pairs of them: a processor without VNNI must not saturate.
    values[:, 2:4], weight[0] = 255, 1
    steps, scales = quantised_weight(torch.from_numpy(weight))
    assert np.abs(steps.numpy() * scales.numpy()[:, None, None, None, None] - weight).max() <= scales.max() / 2 + 1e-7
    expected = [
        scale * sum(correlate(plane / 255, k, mode="constant") for plane, k in zip(values, kernel, strict=True))
        for kernel, scale in zip(steps.numpy().astype(np.float64), scales.numpy(), strict=True)
    ]
    given = torch.from_numpy(values[None].astype(np.uint8)).contiguous(memory_format=torch.channels_last_3d)
    for _ in range(2):  # packed, then from the cache
        got = int8_convolution(given, 1 / 255, steps, scales, [1] * 3, [1] * 3, [1] * 3, 1, dtype)
        assert got.dtype == dtype
        assert norm_relative(got[0], torch.from_numpy(np.stack(expected))) <= (1e-6 if dtype == torch.float32 else 3e-3)


@pytest.mark.parametrize("precision", ["fp16", "fp32+fp16"])
def test_fp16_without_such_arithmetic(graphs, precision):
    clip = clip_with_ties(SPEC, 2)
    graph = graphs[precision]
    with torch.no_grad():
        native = graph.module(clip, torch.tensor([3]))[2]
    # Products of fp16 values summed in float32 and rounded once, where torch sums in fp16: nearer to the exact map.
    exact = explain(graphs["fp32"], clip)
    assert norm_relative(explain(graph, clip), native) <= 0.01
    assert norm_relative(explain(graph, clip), exact) <= 1.5 * norm_relative(native, exact)


def test_names():
    assert split_precision("bf16+int8") == ("bf16", "int8")
    assert split_precision("fp16") == ("fp16", "fp16")
    with pytest.raises(sr.InputError, match=r"no precision 'fp32\+int4' \(did you mean 'fp32\+int8'.*there are fp32,"):
        compiled(dtd(network()), "fp32+int4")
    with pytest.raises(sr.InputError, match=r"float32 clips, got torch\.float64"):
        compile_explanation(dtd(network()), torch.zeros(1, *SPEC.shape, dtype=torch.float64), precision="bf16")
    for runner, has in RUNS.items():
        for precision in PRECISIONS:
            if precision in has:
                check_runs(runner, precision)
            else:
                with pytest.raises(sr.InputError, match=rf"{runner} runner does not run .*it runs fp32"):
                    check_runs(runner, precision)
