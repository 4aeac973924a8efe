"""From an attributor to a flat graph of plain operations: trace → lower → simplify → signs → fold → simplify."""

from .explanation_graph import ExplanationGraph, PassReport, compile_explanation

__all__ = ["ExplanationGraph", "PassReport", "compile_explanation"]
