"""Runners on a GPU: the explanation of the graph on the processor, in every precision, through one CUDA graph."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import selrel_zennit as sr
from networks import small_c3d
from selrel_deploy import compile_explanation, open_runner
from selrel_deploy.artifact.format import read_artifact
from selrel_deploy.precisions import RUNS_ON_CUDA
from selrel_deploy.runners.tensorrt.engine import MODULES

from ...conftest import clip_with_ties, norm_relative

pytestmark = pytest.mark.cuda

SPEC = small_c3d().spec
CUDA = "CUDAExecutionProvider"
# Largest relative error of the relevance: float32, and where products are rounded.
EXACT, ROUNDED = 1e-3, 0.2


def graph_in(precision: str) -> Any:
    attributor = sr.build_method("dtd", small_c3d())
    return compile_explanation(attributor, torch.zeros(1, *SPEC.shape), precision=precision)


@pytest.mark.parametrize("precision", RUNS_ON_CUDA["inductor"])
def test_torch(precision: str) -> None:
    graph = graph_in(precision)
    most = EXACT if precision == "fp32" else ROUNDED
    for runner in ("eager", "inductor"):
        with open_runner(graph, runner, device="cuda") as run:
            assert run.provider == ("torch" if runner == "eager" else "torch inductor, CUDA graph")
            for seed, target in ((0, 2), (1, 3), (0, 4)):
                clip = clip_with_ties(SPEC, seed)
                found = run(clip.numpy(), target)
                _, explained, relevance, *_ = graph(clip, torch.tensor([target]))
                assert found.target.tolist() == explained.tolist()
                assert norm_relative(torch.from_numpy(found.relevance), relevance) <= most


def test_a_graph_is_replayed_without_new_memory() -> None:
    with open_runner(graph_in("fp32"), "inductor", device="cuda") as run:
        clips = [clip_with_ties(SPEC, seed).numpy() for seed in range(2)]
        first = [run(clip, 1).relevance for clip in clips]
        torch.cuda.synchronize()
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        for _ in range(5):
            run.compute()  # type: ignore[attr-defined]
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
        assert [np.array_equal(run(clip, 1).relevance, one) for clip, one in zip(clips, first, strict=True)] == [
            True
        ] * 2


def has(runtime: str) -> bool:
    """Say whether a runtime of artifacts is installed, with its part for CUDA."""
    if runtime == "onnxruntime":
        return CUDA in onnxruntime.get_available_providers()
    return any(importlib.util.find_spec(name) is not None for name in MODULES)


RUNTIMES: list[tuple[str, dict[str, Any]]] = [
    ("onnxruntime", {"provider": CUDA}),
    ("tensorrt", {"selection": "graph"}),
    ("tensorrt", {"selection": "kernel"}),
    ("tensorrt", {"cuda_graph": False}),
]
INSTALLED = [(name, options) for name, options in RUNTIMES if has(name)]

# No GPU test may be skipped where a GPU is required. Of a missing runtime there is none, and gpu_check.sh says so.
if INSTALLED:

    @pytest.mark.parametrize(("name", "options"), INSTALLED, ids=lambda value: str(value))
    def test_golden_cases(
        name: str, options: dict[str, Any], artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SELREL_ENGINE_CACHE", str(tmp_path))
        for kind in ("whole", "split", "uint8"):
            golden = read_artifact(artifacts[kind]).golden()
            with open_runner(artifacts[kind], name, **options) as run:
                for index, value in enumerate(golden["frames" if kind == "uint8" else "clip"]):
                    found = run(value, golden["target"][index])
                    assert np.array_equal(found.target, golden["explained_target"][index]), (run, kind)
                    error = np.linalg.norm(found.relevance - golden["relevance"][index])
                    assert error <= EXACT * np.linalg.norm(golden["relevance"][index]), (run, kind)
                    assert (found.mask != golden["mask"][index]).mean() <= 2e-3, (run, kind)
