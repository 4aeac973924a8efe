"""Runners: one file per runtime, each a Runner with NumPy in and an Explanation out; named here, loaded on demand."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from selrel_zennit.errors import InputError
from selrel_zennit.text import close_names

from ..precisions import RUNS, RUNS_ON_CUDA
from .base import OutputError, Runner
from .tensorrt.engine import MODULES

if TYPE_CHECKING:
    from ..compiler import ExplanationGraph

__all__ = ["RUNNERS", "OutputError", "Runner", "list_runners", "open_runner"]


class RunnerEntry(NamedTuple):
    """A runner: module of this package and class in it, what it needs installed, and the packages that bring that.

    These are the runtime's own: an extra of this package would bring torch too, to a device that does without it.
    ``status`` says what of it nobody has run; empty where all of it has been. ``instead`` are modules that do, too.
    """

    module: str
    kind: str
    needs: str
    packages: str
    summary: str
    status: str = ""
    instead: tuple[str, ...] = ()


_ON_CUDA = "on CUDA: built, not run; no GPU has run it yet"

RUNNERS = {
    "eager": RunnerEntry(
        "torch.eager", "EagerRunner", "torch", "torch", "a graph as it is, in torch: the reference", _ON_CUDA
    ),
    "inductor": RunnerEntry(
        "torch.inductor",
        "InductorRunner",
        "torch",
        "torch",
        "a graph compiled to machine code by torch.compile",
        _ON_CUDA,
    ),
    "onnxruntime": RunnerEntry(
        "onnxruntime",
        "OnnxRuntimeRunner",
        "onnxruntime",
        "onnxruntime",
        "an artifact in ONNX Runtime, by one of its providers",
        _ON_CUDA,
    ),
    "openvino": RunnerEntry(
        "openvino", "OpenVinoRunner", "openvino", "openvino", "an artifact in OpenVINO, on one of its devices"
    ),
    "tensorrt": RunnerEntry(
        "tensorrt.runner",
        "TensorRtRunner",
        "tensorrt",
        "tensorrt cuda-core",
        "an artifact in TensorRT or TensorRT-RTX, on an NVIDIA GPU",
        "built, not run; no GPU has run it yet",
        MODULES[1:],
    ),
}


def open_runner(source: str | Path | ExplanationGraph, runner: str = "onnxruntime", **options: Any) -> Runner:
    """Return a runner for an artifact (any of its files), or for a graph where the runtime takes one.

    >>> with open_runner("dtd.onnx", "onnxruntime", threads=2) as run:
    ...     explanation = run(clip, target=None)

    Raises InputError for an unknown runner or option, a runtime or device that is not there, a precision that the
    runtime does not have, a damaged artifact.
    """
    if runner not in RUNNERS:
        raise InputError(f"no runner named {runner!r}{close_names(runner, RUNNERS)}; there are {', '.join(RUNNERS)}")
    entry = RUNNERS[runner]
    try:
        kind: type[Runner] = getattr(importlib.import_module(f".{entry.module}", __name__), entry.kind)
        return kind.open(source, **options)
    except ModuleNotFoundError as error:
        remedy = f"pip install {entry.packages}"
        raise InputError(f"the runner {runner} needs {error.name}, which is not installed: {remedy}") from None


def list_runners() -> list[dict[str, Any]]:
    """Return what `selrel list runners` shows: name, summary, whether it is installed, its precisions, its status."""
    return [
        {
            "name": name,
            "summary": entry.summary,
            "installed": "yes" if any(map(_is_installed, (entry.needs, *entry.instead))) else "no",
            "precisions": list(RUNS[name]),
            "precisions_on_cuda": list(RUNS_ON_CUDA.get(name, ())),
            "status": entry.status,
        }
        for name, entry in RUNNERS.items()
    ]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False
