"""Runners on CUDA as far as there need be no GPU: graphs that are moved, precision switches, bound memory, refusals."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import selrel_zennit as sr
from helpers import slow_but
from networks import FewLayers, few_layers, small_c3d
from selrel_deploy import compile_explanation, open_runner
from selrel_deploy.compiler import ExplanationGraph
from selrel_deploy.precisions import RUNS_ON_CUDA, check_runs
from selrel_deploy.runners.torch import on_cuda as torch_cuda
from selrel_deploy.runners.torch.on_cuda import float32_products, on_device

from ..conftest import clip_with_ties

SPEC = small_c3d().spec
CUDA = "CUDAExecutionProvider"


@pytest.fixture(scope="module")
def graph() -> ExplanationGraph:
    attributor = sr.build_method("dtd", few_layers())
    return compile_explanation(attributor, torch.zeros(1, *FewLayers.spec.shape), precision="fp32+fp16")


def test_a_moved_graph_is_all_on_its_device(graph: ExplanationGraph) -> None:
    """On tensors without values, which have devices all the same."""
    device = torch.device("cuda", 0)
    before = {name: tensor.device for name, tensor in graph.module.named_buffers()}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        clip, target = torch.empty(graph.clip_shape, device=device), torch.empty(1, dtype=torch.int64, device=device)
        outputs = on_device(faked(graph.module, mode), device)(clip, target)
        assert {output.device for output in outputs} == {device}
        assert [tuple(output.shape) for output in outputs[1:3]] == [(1,), (1, *FewLayers.spec.shape[1:])]
        with pytest.raises(RuntimeError, match="on the same device"):
            graph.module(clip, target)
    # The graph itself stays where it was.
    assert {name: tensor.device for name, tensor in graph.module.named_buffers()} == before


def faked(module: torch.fx.GraphModule, mode: Any) -> torch.fx.GraphModule:
    tensors = {name: mode.from_tensor(tensor) for name, tensor in module.named_buffers()}
    return torch.fx.GraphModule(tensors, module.graph)


def test_a_copy_computes_the_same(graph: ExplanationGraph) -> None:
    clip, target = clip_with_ties(FewLayers.spec, 1), torch.tensor([2])
    with torch.no_grad():
        for found, expected in zip(
            on_device(graph.module, torch.device("cpu"))(clip, target), graph.module(clip, target), strict=True
        ):
            assert torch.equal(found, expected)


def test_float32_means_float32() -> None:
    """torch's own default rounds convolutions' inputs to 10 bits."""
    backends = torch.backends

    def switches() -> tuple[Any, ...]:
        return (backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision, backends.cudnn.benchmark)

    def legacy() -> tuple[bool, ...]:
        # What compilers read; it raises where both names say different things.
        return backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32

    before = switches(), legacy()
    assert legacy()[0], "torch's default has changed"
    for tf32 in (False, True):
        with float32_products(tf32):
            assert legacy() == (tf32, tf32)
            assert backends.cudnn.benchmark
        assert (switches(), legacy()) == before
    with pytest.raises(ZeroDivisionError), float32_products(True):
        raise ZeroDivisionError
    assert (switches(), legacy()) == before
    # A caller who has used the newer names, which the older ones then do not tell.
    backends.cudnn.conv.fp32_precision = "ieee"
    try:
        with float32_products(True):
            assert legacy() == (True, True)
        assert switches() == ("ieee", *before[0][1:])
    finally:
        backends.cudnn.conv.fp32_precision = before[0][0]
    assert (switches(), legacy()) == before


def test_what_torch_refuses(graph: ExplanationGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    for runner in ("eager", "inductor"):
        for options, message in (
            ({"device": "gpu"}, "no device 'gpu' for this runner: give cuda, or cuda:N"),
            ({"device": "cuda:x"}, "no device 'cuda:x'"),
            ({"tf32": True}, "tf32 is an option on CUDA alone: give device='cuda' with it"),
            ({"device": "cpu", "tf32": True}, "tf32 is an option on CUDA alone"),
            ({"device": "cuda", "threads": 1}, "no option 'threads'; there are device, tf32"),
        ):
            with pytest.raises(sr.InputError, match=message):
                open_runner(graph, runner, **options)
        for version, available, message in (
            (None, False, "this torch was built without CUDA"),
            ("13.2", False, "torch finds no CUDA device: check the NVIDIA driver"),
            ("13.2", True, "there is no cuda:3; torch finds 2, counted from 0"),
        ):
            monkeypatch.setattr(torch.version, "cuda", version)
            monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
            monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
            with pytest.raises(sr.InputError, match=message) as raised:
                open_runner(graph, runner, device="cuda:3")
            assert "\n" not in str(raised.value)
    with open_runner(graph, "eager", device="cpu") as run:
        assert run.provider == "torch"


def test_precisions_on_cuda() -> None:
    for runner, has in RUNS_ON_CUDA.items():
        for precision in has:
            check_runs(runner, precision, cuda=True)
        with pytest.raises(sr.InputError, match=rf"{runner} runner does not run fp32\+int8 on CUDA, .* runs in eager"):
            check_runs(runner, "fp32+int8", cuda=True)
    check_runs("tensorrt", "fp32+int8", cuda=True)


class Session:
    """Stands in for a session of the CUDA provider: ONNX Runtime's CPU provider computes, and says it were the other.

    Its memory is the processor's too; binding, copies and calls are ONNX Runtime's own.
    """

    settings: tuple[Any, ...] = ()

    def __init__(self, path: str, options: Any, providers: Any) -> None:
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        Session.settings = (*Session.settings, providers)
        # The processor, which computes here, must not be forbidden to the real session.
        allowed = onnxruntime.SessionOptions()
        allowed.intra_op_num_threads = options.intra_op_num_threads
        self._real = REAL(path, allowed, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return [CUDA]

    def run(self, *_: Any) -> None:
        raise AssertionError("it would allocate in every call")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


REAL = onnxruntime.InferenceSession


@pytest.fixture
def cuda_provider(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Let ONNX Runtime seem to have its CUDA provider; return what is allocated, and where."""
    allocated: list[tuple[Any, ...]] = []
    make = onnxruntime.OrtValue.ortvalue_from_shape_and_type

    def on_cpu(shape: Any, kind: Any, memory: str, ordinal: int) -> Any:
        allocated.append((tuple(shape), kind, memory, ordinal))
        return make(shape, kind, "cpu", 0)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", staticmethod(on_cpu))
    monkeypatch.setattr(Session, "settings", ())
    return allocated


@pytest.mark.parametrize("kind", slow_but(["whole", "split", "uint8"], "whole"))
def test_bound_memory(
    artifacts: dict[str, Path], kind: str, cuda_provider: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [clip_with_ties(SPEC, seed).numpy() for seed in range(2)]
    if kind == "uint8":
        clips = [np.random.default_rng(seed).integers(0, 256, (1, 16, 40, 50, 3), dtype=np.uint8) for seed in range(2)]
    with open_runner(artifacts[kind], provider=CUDA, threads=1, device="cuda:1") as run:
        assert (run.provider, run.device) == (CUDA, "CUDA device 1")
        assert {(memory, ordinal) for _, _, memory, ordinal in cuda_provider} == {("cuda", 1)}
        found = [run(clip, target) for clip, target in zip([*clips, clips[0]], (None, 3, 3), strict=True)]
        if kind == "split":
            run.forward(clips[1])
            assert np.array_equal(run.explain(3).relevance, found[1].relevance)
        values = 7 + len(run.artifact.activations)  # type: ignore[attr-defined]
        assert len(cuda_provider) == values, "memory was allocated in a call"
    assert Session.settings[0] == [(CUDA, {"device_id": "1", "use_tf32": "0"})]
    monkeypatch.undo()
    with open_runner(artifacts[kind], threads=1) as expected:
        for one, clip, target in zip(found, [*clips, clips[0]], (None, 3, 3), strict=True):
            reference = expected(clip, target)
            assert np.array_equal(one.logits, reference.logits)
            assert np.array_equal(one.relevance, reference.relevance)
            assert np.array_equal(one.mask, reference.mask)


def test_memory_that_the_provider_lacks(
    artifacts: dict[str, Path], cuda_provider: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise RuntimeError("bfc_arena.cc: Failed to allocate memory for requested buffer of size 49152\n")

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", staticmethod(full))
    with pytest.raises(sr.InputError, match=rf"{CUDA} has no memory for whole\.onnx \(bfc_arena") as raised:
        open_runner(artifacts["whole"], provider=CUDA)
    assert "\n" not in str(raised.value)


def test_options_of_the_cuda_provider(artifacts: dict[str, Path], cuda_provider: list[Any]) -> None:
    with open_runner(artifacts["whole"], provider=CUDA, tf32=True) as run:
        assert run.provider == f"{CUDA}, TF32"
    assert Session.settings[0] == [(CUDA, {"device_id": "0", "use_tf32": "1"})]
    with pytest.raises(sr.InputError, match="device and tf32 are options of CUDAExecutionProvider"):
        open_runner(artifacts["whole"], device="cuda:0")
    with pytest.raises(sr.InputError, match="no device 'cpu' for this runner"):
        open_runner(artifacts["whole"], provider=CUDA, device="cpu")


def put_the_processor_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the device, and the graph as it is in place of a compiled one."""
    monkeypatch.setattr(torch_cuda, "cuda_device", lambda device: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Stand-in")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch_cuda, "compile_frozen", lambda module, *examples: module)


def stand_in_for_record(call: Any) -> Any:
    """Return a replay that, as a CUDA graph's, puts what it computes where the recorded call had put it."""
    runner = call.__self__
    call()
    kept = runner._outputs_on_device

    def replay() -> None:
        for into, value in zip(kept, runner._module(*runner._inputs), strict=True):
            into.copy_(value)

    return replay


def test_a_replay_after_a_launch_has_outputs_of_its_own(
    graph: ExplanationGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_the_processor_in_place(monkeypatch)
    monkeypatch.setattr(torch_cuda, "record", stand_in_for_record)
    clips, target = [clip_with_ties(FewLayers.spec, seed) for seed in range(2)], torch.tensor([2])
    with torch.no_grad():
        expected = [graph.module(clip, target)[2].numpy() for clip in clips]
    with open_runner(graph, "inductor", device="cuda") as opened:
        run: Any = opened
        assert run.provider == "torch inductor, CUDA graph"
        assert np.array_equal(run(clips[0].numpy(), 2).relevance, expected[0])
        run.load(clips[1].numpy(), target.numpy())
        run.launch()
        assert np.array_equal(run.fetch()[2], expected[1])
        assert np.array_equal(run(clips[0].numpy(), 2).relevance, expected[0])


@pytest.mark.parametrize("runner", ["eager", "inductor"])
def test_torch_with_the_processor_in_place_of_the_device(
    graph: ExplanationGraph, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the device, its compiler and its graph: test_runners_on_gpu.py has those."""
    put_the_processor_in_place(monkeypatch)
    options = {"cuda_graph": False} if runner == "inductor" else {}
    with open_runner(graph, runner, device="cuda", tf32=True, **options) as run:
        assert (run.name, run.device) == (runner, "Stand-in")
        assert run.provider == {"eager": "torch, TF32", "inductor": "torch inductor, TF32"}[runner]
        for seed, target in ((0, 1), (1, 3)):
            clip = clip_with_ties(FewLayers.spec, seed)
            assert np.array_equal(run(clip.numpy(), target).relevance, graph.module(clip, torch.tensor([target]))[2])
    with pytest.raises(sr.InputError, match="closed"):
        run(clip.numpy())
    if runner == "inductor":
        flipped = lambda module, *examples: lambda *given: [value.flip(-1) for value in module(*given)]  # noqa: E731
        monkeypatch.setattr(torch_cuda, "compile_frozen", flipped)
        with pytest.raises(sr.InputError, match=r"inductor computes another explanation .* use the eager runner"):
            open_runner(graph, runner, device="cuda", **options)
