"""The tensorrt runner on stand-ins for a GPU (gpu_stand_in.py): buffers, order, graphs, selection, refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import selrel_zennit as sr
from helpers import slow_but
from networks import FewLayers, few_layers, small_c3d
from selrel_deploy import compile_explanation, open_runner
from selrel_deploy.artifact import export
from selrel_deploy.artifact.format import OUTPUTS, write_manifest
from selrel_deploy.bench import report, timing
from selrel_deploy.runners import driver, list_runners
from selrel_deploy.runners.tensorrt import cuda_memory, motion_kernel
from selrel_deploy.runners.tensorrt import engine as tensorrt_engine
from selrel_kernels import select_motion
from selrel_zennit.cli import main

from ...conftest import FRAME_SIZE, clip_with_ties
from . import gpu_stand_in, tensorrt_stand_in

SPEC = small_c3d().spec
FOUND = {"error": "", "cuda": 13020, "devices": [[gpu_stand_in.GPU, 90], ["Another", 87]], "refusal": ""}

Install = Callable[..., tuple[Any, Any]]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Put the stand-ins in the places of TensorRT, cuda-core and the driver; return the first two."""
    monkeypatch.setenv("SELREL_ENGINE_CACHE", str(tmp_path / "engines"))

    def with_stand_ins(version: str = "10.3.0", free: int = 1 << 30, **found: Any) -> tuple[Any, Any]:
        trt, core = tensorrt_stand_in.tensorrt(version), gpu_stand_in.cuda_core(free)
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        monkeypatch.setitem(sys.modules, "cuda.core", core)
        monkeypatch.setattr(driver, "ask", lambda module: {**FOUND, **found})
        monkeypatch.setattr(motion_kernel, "CudaCore", gpu_stand_in.KernelDriver)
        return trt, core

    return with_stand_ins


def assert_same(found: Any, expected: Any) -> None:
    # Both are ONNX Runtime, on the same file.
    for name in ("logits", "target", "relevance", "motion_relevance", "mask"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("version", slow_but(["8.6.1", "10.3.0", "11.4.0"], "10.3.0"))
@pytest.mark.parametrize("kind", slow_but(["whole", "split", "uint8"], "whole"))
def test_the_same_explanation(install: Install, artifacts: dict[str, Path], version: str, kind: str) -> None:
    _, core = install(version)
    inputs = [clip_with_ties(SPEC, seed).numpy() for seed in range(2)]
    if kind == "uint8":
        rng = np.random.default_rng(0)
        inputs = [rng.integers(0, 256, (1, 16, *FRAME_SIZE, 3), dtype=np.uint8) for _ in inputs]
    with open_runner(artifacts[kind], "tensorrt") as run, open_runner(artifacts[kind], threads=1) as expected:
        assert run.device == gpu_stand_in.GPU
        assert run.provider == f"TensorRT {version}, CUDA graph"
        allocated, replays = core.status["memory"], core.status["replays"]
        for value, target in ((inputs[0], None), (inputs[1], 3), (inputs[0], 0)):
            assert_same(run(value, target), expected(value, target))
        assert core.status["memory"] == allocated, "memory was allocated in a call"
        assert core.status["replays"] == replays + (6 if kind == "split" else 3)
        if kind == "split":
            logits = run.forward(inputs[1])
            first = run.explain(1)
            assert np.array_equal(logits, first.logits)
            second = run.explain(2)
            assert not np.array_equal(first.relevance, second.relevance)
            assert_same(first, expected(inputs[1], 1))
    assert core.status["memory"] == 0, "memory was not freed"
    with pytest.raises(sr.InputError, match="closed"):
        run(inputs[0])


@pytest.mark.parametrize("kind", slow_but(["whole", "split"], "whole"))
def test_the_kernel_selects_in_place_of_the_engine(install: Install, artifacts: dict[str, Path], kind: str) -> None:
    trt, _ = install()
    clip = clip_with_ties(SPEC, 1).numpy()
    with open_runner(artifacts[kind], threads=1) as expected:
        reference = expected(clip, 2)
    with open_runner(artifacts[kind], "tensorrt", selection="kernel") as run:
        assert run.provider == "TensorRT 10.3.0, CUDA graph, selection kernel"
        assert_same(run(clip, 2), reference)
        if kind == "split":
            run.forward(clip)
            assert_same(run.explain(2), reference)
    assert not [built for built in trt.builds if "mask" in built["outputs"] or "motion_relevance" in built["outputs"]]


@pytest.mark.slow
def test_the_kernel_selects_as_the_artifact_says(install: Install, tmp_path: Path) -> None:
    install()
    settings = sr.MotionSelection.preset("author-2021", n_sigma=1.0)
    graph = compile_explanation(
        sr.build_method("gradient", few_layers()), torch.zeros(1, *FewLayers.spec.shape), settings
    )
    path = export(graph, tmp_path / "g.onnx")
    clip = clip_with_ties(FewLayers.spec, 0).numpy()
    with open_runner(path, threads=1) as expected:
        reference = expected(clip, 1)
    with open_runner(path, "tensorrt", selection="kernel") as run:
        assert_same(run(clip, 1), reference)
    # The same file, described as if its thresholds were calibrated ones.
    manifest, thresholds = path.with_suffix(".json"), np.linspace(1e-5, 2e-4, FewLayers.spec.frames)
    fields = json.loads(manifest.read_text(encoding="utf-8"))
    del fields["manifest_sha256"]
    write_manifest({**fields, "selection": {"thresholds": thresholds.tolist(), "alpha": 0.01}}, manifest)
    motion, mask = select_motion(reference.relevance, thresholds=np.float32(thresholds))
    assert 0 < mask.mean() < 1
    assert not np.array_equal(mask, reference.mask)
    with open_runner(path, "tensorrt", selection="kernel") as run:
        found = run(clip, 1)
    assert np.array_equal(found.relevance, reference.relevance)
    assert np.array_equal(found.mask, mask)
    assert np.array_equal(found.motion_relevance, motion)


def test_without_a_graph(install: Install, artifacts: dict[str, Path]) -> None:
    _, core = install()
    clip = clip_with_ties(SPEC, 1).numpy()
    with open_runner(artifacts["whole"], "tensorrt", cuda_graph=False, tf32=True, device="cuda:1") as run:
        assert (run.provider, run.device) == ("TensorRT 10.3.0, TF32", "Another")
        with open_runner(artifacts["whole"], threads=1) as expected:
            assert_same(run(clip, 1), expected(clip, 1))
        assert core.status["replays"] == 0
        # The stages apart, as they are timed.
        run.upload(clip, np.array([2]))  # type: ignore[attr-defined]
        run.compute()  # type: ignore[attr-defined]
        run.download()  # type: ignore[attr-defined]
        run.stream.sync()  # type: ignore[attr-defined]
        assert np.array_equal(run.outputs()[1], [2])  # type: ignore[attr-defined]


def test_an_engine_that_cannot_be_captured_says_so(
    install: Install, artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    refuses = lambda self, stream: False  # noqa: E731
    monkeypatch.setattr(tensorrt_stand_in.IExecutionContext, "is_stream_capturable", refuses, raising=False)
    with open_runner(artifacts["whole"], "tensorrt") as run:
        assert run.provider == "TensorRT 10.3.0"
        run(clip_with_ties(SPEC, 1).numpy(), 1)


def test_engines_are_built_once(install: Install, artifacts: dict[str, Path]) -> None:
    trt, _ = install()
    for options in ({}, {}, {"tf32": True}, {"selection": "kernel"}, {"device": "cuda:1"}, {}):
        open_runner(artifacts["whole"], "tensorrt", **options).close()
    assert [built["flags"] for built in trt.builds] == [[], ["TF32"], [], []]


def test_a_wrong_engine_does_not_open(
    install: Install, artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, core = install()
    honest = tensorrt_stand_in.IExecutionContext._compute

    def scaled(self: Any) -> None:
        honest(self)
        gpu_stand_in.view(self._addresses["relevance"], *self._engine._tensors["relevance"])[:] *= 2

    monkeypatch.setattr(tensorrt_stand_in.IExecutionContext, "_compute", scaled)
    with pytest.raises(sr.InputError, match=r"TensorRT computes another explanation .* differs by 100%"):
        open_runner(artifacts["whole"], "tensorrt")
    assert core.status["memory"] == 0
    open_runner(artifacts["whole"], "tensorrt", check=False).close()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"error": "there is no driver: install NVIDIA's", "devices": []}, "needs an NVIDIA GPU: there is no driver"),
        ({"cuda": 11040}, r"driver is too old: it knows CUDA 11\.4, cuda-core needs 12\.0: update it"),
        ({"devices": [["One", 90]]}, r"there is no cuda:1; there are cuda:0 .One."),
        (
            {"refusal": "CUDA initialization failure with error: 35"},
            r"driver is too old for TensorRT 10\.3\.0: it knows CUDA 13\.2: update it",
        ),
        ({"refusal": "something else"}, r"TensorRT 10\.3\.0 does not start on this GPU .something else.: check"),
    ],
)
def test_what_the_driver_lacks(
    install: Install, artifacts: dict[str, Path], found: dict[str, Any], message: str
) -> None:
    trt, _ = install(**found)
    del trt.Runtime, trt.Builder  # no object of TensorRT is made
    with pytest.raises(sr.InputError, match=message) as raised:
        open_runner(artifacts["whole"], "tensorrt", device="cuda:1")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("free", [0, 40_000, 140_000])
def test_too_little_memory(install: Install, artifacts: dict[str, Path], free: int) -> None:
    _, core = install(free=free)
    with pytest.raises(sr.InputError, match=r"the GPU has too little free memory for an array .*: end what else uses"):
        open_runner(artifacts["whole"], "tensorrt")
    assert core.status["memory"] == 0
    core.status["free"] = 1 << 30
    open_runner(artifacts["whole"], "tensorrt").close()


def test_what_is_refused(install: Install, artifacts: dict[str, Path], tmp_path: Path) -> None:
    install()
    path = artifacts["whole"]
    for options, message in (
        ({"threads": 2}, "no option 'threads'; there are device, selection, tf32, cuda_graph, check"),
        ({"selection": "none"}, "selection must be one of graph, kernel, got 'none'"),
        ({"device": "gpu"}, "no device 'gpu' for this runner: give cuda, or cuda:N"),
        ({"device": "cuda:x"}, "no device 'cuda:x'"),
        ({"device": "cpu"}, "no device 'cpu'"),
        ({"device": -1}, "no device -1"),
    ):
        with pytest.raises(sr.InputError, match=message):
            open_runner(path, "tensorrt", **options)
    for name in ("dtd.plan", "dtd.engine"):
        (tmp_path / name).write_bytes(b"plan")
        with pytest.raises(sr.InputError, match=r"is an engine, which belongs to one GPU .* give the NAME\.onnx"):
            open_runner(tmp_path / name, "tensorrt")
    with pytest.raises(sr.InputError, match="export the graph first"):
        open_runner(None, "tensorrt")  # type: ignore[arg-type]
    with open_runner(path, "tensorrt") as run, pytest.raises(sr.InputError, match="target must"):
        run(clip_with_ties(SPEC, 0).numpy(), 5)
    for file in path.parent.glob("whole.*"):
        shutil.copy(file, tmp_path / file.name.replace("whole", "refused"))
    shutil.rmtree(tensorrt_engine.cache_folder())  # which has the engine of these very files
    with pytest.raises(sr.InputError, match=r"does not take refused\.onnx .node 3: no importer for it.: see what else"):
        open_runner(tmp_path / "refused.onnx", "tensorrt")


def test_what_is_not_installed(install: Install, artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(sr.InputError, match=r"needs cuda-core .*pip install cuda-core") as raised:
        open_runner(artifacts["whole"], "tensorrt")
    assert "\n" not in str(raised.value)
    monkeypatch.setattr(tensorrt_engine, "MODULES", ("tensorrt_that_is_not_there",))
    with pytest.raises(sr.InputError, match=r"needs tensorrt, .*: pip install tensorrt cuda-core"):
        open_runner(artifacts["whole"], "tensorrt")


def test_the_listing_says_what_nobody_has_run() -> None:
    rows = {row["name"]: row for row in list_runners()}
    assert rows["tensorrt"]["status"].startswith("built, not run")
    assert rows["tensorrt"]["precisions"] == ["fp32", "fp32+fp16", "fp32+int8", "fp16", "fp16+int8"]
    assert "bf16" in rows["inductor"]["precisions_on_cuda"]
    assert rows["inductor"]["status"].startswith("on CUDA: built, not run")
    assert rows["openvino"]["status"] == ""


# --- the driver


def libcuda(**answers: Any) -> Any:
    """A stand-in for libcuda on a machine with one GPU."""
    said = {"version": 13020, "init": 0, "name": b"NVIDIA H200", **answers}

    def put(value: int) -> Callable[..., int]:
        def answer(where: Any, *_: Any) -> int:
            where._obj.value = value
            return 0

        return answer

    def attribute(where: Any, which: int, ordinal: int) -> int:
        return put({75: 9, 76: 0}[which])(where)

    def name(buffer: Any, size: int, ordinal: int) -> int:
        buffer.value = said["name"]
        return 0

    return types.SimpleNamespace(
        cuDriverGetVersion=put(said["version"]),
        cuInit=lambda flags: said["init"],
        cuDeviceGetCount=put(1),
        cuDeviceGetName=name,
        cuDeviceGetAttribute=attribute,
    )


def test_what_the_driver_says() -> None:
    expected = {"error": "", "cuda": 13020, "devices": [["NVIDIA H200", 90]]}
    assert driver.look(lambda name: libcuda()) == expected
    assert "driver finds none" in driver.look(lambda name: libcuda(init=100))["error"]
    assert "does not start (CUDA error 803)" in driver.look(lambda name: libcuda(init=803))["error"]

    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    assert "no driver" in driver.look(missing)["error"]


def test_tensorrt_starts_in_the_process_that_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trt = tensorrt_stand_in.tensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    for broken, refusal in (("", ""), ("driver", "CUDA initialization failure with error: 35")):
        trt.broken = broken
        driver.main("tensorrt", lambda name: libcuda())
        first, second = capsys.readouterr().out.splitlines()
        assert json.loads(first.removeprefix(driver.MARK))["devices"] == [["NVIDIA H200", 90]]
        assert json.loads(second.removeprefix(driver.MARK)) == {"refusal": refusal}


def test_a_process_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = driver.ask.__wrapped__
    there = driver.MARK + json.dumps({"error": "", "cuda": 13020, "devices": [["H200", 90]]}) + "\n"
    for printed, key in (("", "error"), (there, "refusal")):
        done = subprocess.CompletedProcess([], -11, printed, "Segmentation fault\n")
        monkeypatch.setattr(subprocess, "run", lambda *_, done=done, **__: done)
        assert "ended with code -11, and said: Segmentation fault" in ask("tensorrt")[key]


def test_a_machine_without_a_gpu(artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The real question to the real driver, from which all GPUs are hidden where there are any."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra trt-lint")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(driver, "ask", driver.ask.__wrapped__)
    monkeypatch.setattr(tensorrt_engine, "MODULES", ("tensorrt_rtx_bindings",))
    with pytest.raises(
        sr.InputError, match=r"needs an NVIDIA GPU: (there is no driver|the driver finds none)"
    ) as raised:
        open_runner(artifacts["whole"], "tensorrt")
    assert "\n" not in str(raised.value)


def test_messages_about_memory() -> None:
    for said in (
        "CUDA_ERROR_OUT_OF_MEMORY",
        "OutOfMemory (requested 4 bytes)",
        "cudaErrorMemoryAllocation",
        "out of memory",
    ):
        assert cuda_memory.out_of_memory(said)
    assert not cuda_memory.out_of_memory("invalid argument")
    assert len(OUTPUTS) == 5


@pytest.mark.slow
def test_parity_and_bench_open_it(
    install: Install, artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    monkeypatch.setattr(report, "warm_up", partial(timing.warm_up, least=0.0, most=0.0))
    path = str(artifacts["split"])
    assert main(["parity", path, "--runner", "tensorrt", "--json", str(tmp_path / "parity.json")]) == 0
    said = json.loads((tmp_path / "parity.json").read_text("utf-8"))
    assert (said["grade"], said["runner"]["provider"]) == ("exact", "TensorRT 10.3.0, CUDA graph")
    assert said["runner"]["status"] == "built, not run; no GPU has run it yet"
    command = ["bench", "--artifact", path, "--runners", "tensorrt", "--rounds", "2", "--threads", "1"]
    command += ["--provider", "cuda:0", "--runner-option", "selection=kernel", "--runner-option", "cuda_graph=false"]
    assert main([*command, "--json", str(tmp_path / "bench.json")]) == 0
    result = json.loads((tmp_path / "bench.json").read_text("utf-8"))
    names = ["forward tensorrt fp32", "to_device tensorrt", "compute tensorrt", "back tensorrt"]
    assert [one["name"] for one in result["bare"]] == names
    (row,) = result["rows"]
    assert (row["device"], row["provider_asked"]) == (gpu_stand_in.GPU, "cuda:0")
    assert row["provider_used"] == "TensorRT 10.3.0, selection kernel"
    assert row["parity"]["grade"] == "exact"
