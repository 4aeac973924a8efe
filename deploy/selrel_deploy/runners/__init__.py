"""Runners: one file per runtime, each a Runner with NumPy in and an Explanation out; named here, loaded on demand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selrel_zennit.errors import InputError
from selrel_zennit.text import close_names

from .base import Runner

if TYPE_CHECKING:
    from ..compiler import ExplanationGraph

__all__ = ["RUNNERS", "Runner", "open_runner"]

# name → module of this package, class in it, distribution that it needs besides selrel-zennit's own
RUNNERS: dict[str, tuple[str, str, str | None]] = {
    "eager": ("eager", "EagerRunner", None),
    "onnxruntime": ("onnxruntime", "OnnxRuntimeRunner", None),
    "openvino": ("openvino", "OpenVinoRunner", "openvino"),
}


def open_runner(source: str | Path | ExplanationGraph, runner: str = "onnxruntime", **options: Any) -> Runner:
    """Return a runner for an artifact (the path of its .onnx), or for a graph where the runtime takes one.

    >>> with open_runner("dtd.onnx", "onnxruntime", threads=2) as run:
    ...     explanation = run(clip, target=None)

    Raises InputError for an unknown runner or option, a runtime or device that is not there, a damaged artifact.
    """
    if runner not in RUNNERS:
        raise InputError(f"no runner named {runner!r}{close_names(runner, RUNNERS)}; there are {', '.join(RUNNERS)}")
    module, name, extra = RUNNERS[runner]
    try:
        kind: type[Runner] = getattr(importlib.import_module(f".{module}", __name__), name)
        return kind.open(source, **options)
    except ModuleNotFoundError as error:
        remedy = f"pip install 'selrel-zennit[{extra}]'" if extra else f"pip install {error.name}"
        raise InputError(f"the runner {runner} needs {error.name}, which is not installed: {remedy}") from None
