"""Explanations as static graphs, and the runtimes that run them. Public names load when they are first used."""

from typing import TYPE_CHECKING

from selrel_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from .artifact import Artifact as Artifact
    from .artifact import read_artifact as read_artifact
    from .compiler import ExplanationGraph as ExplanationGraph
    from .compiler import compile_explanation as compile_explanation
    from .export import export as export
    from .runners import open_runner as open_runner

_NAMES = {
    "Artifact": "artifact",
    "ExplanationGraph": "compiler",
    "compile_explanation": "compiler",
    "export": "export",
    "open_runner": "runners",
    "read_artifact": "artifact",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
