"""Explanations as static graphs, and the runtimes that run them. Public names load when they are first used."""

from typing import TYPE_CHECKING

from selrel_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from .artifact.export import export as export
    from .artifact.format import Artifact as Artifact
    from .artifact.format import read_artifact as read_artifact
    from .compiler import ExplanationGraph as ExplanationGraph
    from .compiler import compile_explanation as compile_explanation
    from .runners import open_runner as open_runner

_NAMES = {
    "Artifact": "artifact.format",
    "ExplanationGraph": "compiler",
    "compile_explanation": "compiler",
    "export": "artifact.export",
    "open_runner": "runners",
    "read_artifact": "artifact.format",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
