"""compile_explanation: an attributor → ExplanationGraph, one flat graph that explains clips of one shape."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import fx
from zennit.attribution import Attributor

from selrel_zennit.errors import InputError
from selrel_zennit.selection import MotionSelection, Selective

from ..artifact import OUTPUTS
from .fold import fold, pack_constants
from .lower import lower
from .rewriting import constant_bytes, count_convolutions, finish
from .signs import eliminate_zeros
from .simplify import simplify
from .trace import trace

PRECISIONS = ("fp32",)


class PassReport(NamedTuple):
    """What a pass of the compiler left: operations, convolutions among them, bytes of constants."""

    name: str
    operations: int
    convolutions: int
    constant_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.name:<10} {self.operations:5d} operations  {self.convolutions:3d} convolutions  "
            f"{self.constant_bytes / 1e6:8.1f} MB of constants"
        )


@dataclass(frozen=True, eq=False)
class ExplanationGraph:
    """A compiled explanation: a flat graph of plain ATen operations, with every constant its own.

    Called with a clip of ``clip_shape`` and ``dtype`` and targets int64 [B] (−1: the top class), it returns
    ``OUTPUTS`` as a tuple: logits [B,K], explained_target int64 [B], relevance, motion_relevance and mask (bool), each
    [B,T,H,W]. ``passes`` says what each pass of the compiler did; ``print(graph.module.code)`` shows the graph.
    """

    module: fx.GraphModule
    clip_shape: tuple[int, ...]
    dtype: torch.dtype
    num_classes: int
    selection: MotionSelection
    precision: str
    info: dict[str, Any]
    passes: list[PassReport] = field(repr=False)

    outputs = OUTPUTS

    def __call__(self, clip: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the five outputs; see the class. Raises InputError for another shape or dtype, or a bad target."""
        if tuple(clip.shape) != self.clip_shape or clip.dtype != self.dtype:
            raise InputError(
                f"the clip must be {self.dtype} {self.clip_shape}, got {clip.dtype} {tuple(clip.shape)}: "
                "compile the attributor with a clip of that kind"
            )
        batch = self.clip_shape[0]
        if tuple(target.shape) != (batch,) or target.dtype != torch.int64:
            raise InputError(f"target must be int64 [{batch}], got {target.dtype} {tuple(target.shape)}")
        if int(target.min()) < -1 or int(target.max()) >= self.num_classes:
            raise InputError(f"target must lie in -1…{self.num_classes - 1} (-1: top class), got {target.tolist()}")
        with torch.no_grad():
            outputs: tuple[torch.Tensor, ...] = self.module(clip, target)
        return outputs


def compile_explanation(
    attributor: Attributor, clip: torch.Tensor, selection: MotionSelection | None = None, precision: str = "fp32"
) -> ExplanationGraph:
    """Turn a Zennit attributor into one static graph: same values, no hooks, no autograd, no Zennit.

    ``clip`` is an example [B,3,T,H,W] of the shape and dtype to compile for; its values do not matter. ``selection``
    (default: MotionSelection()) becomes part of the graph; of a Selective attributor it is the attributor's own. The
    graph's arithmetic has the clip's dtype. The model is left as it was, and changing it later changes no graph.

    Raises InputError for a Selective attributor together with ``selection``, a model in training mode, an unknown
    precision, and for what no static graph can hold: decisions by value, operations without a rule (named, with the
    module they come from).
    """
    if precision not in PRECISIONS:
        raise InputError(f"no precision {precision!r}; there is {', '.join(PRECISIONS)}")
    if isinstance(attributor, Selective):
        if selection is not None:
            raise InputError("the attributor selects already: pass Selective(…) or a selection, not both")
        attributor, selection = attributor.attributor, attributor.selection
    if any(module.training for module in attributor.model.modules()):
        raise InputError("the model is in training mode: call model.eval() before compiling its explanation")
    if clip.ndim != 5:
        raise InputError(f"the clip must be [B,3,T,H,W], got {tuple(clip.shape)}")
    selection = selection or MotionSelection()
    passes: list[PassReport] = []

    def report(name: str, graph: fx.GraphModule) -> None:
        operations = sum(node.op == "call_function" for node in graph.graph.nodes)
        passes.append(PassReport(name, operations, count_convolutions(graph), constant_bytes(graph)))

    graph = trace(attributor, clip, selection)
    report("trace", graph)
    graph = lower(graph)
    report("lower", graph)
    steps: tuple[tuple[str, Callable[[fx.GraphModule], Any]], ...] = (
        ("simplify", simplify),
        ("signs", eliminate_zeros),
        ("fold", fold),
        ("simplify", simplify),
        ("pack", pack_constants),
    )
    for name, step in steps:
        step(graph)
        report(name, graph)
    logits = graph.graph.output_node().args[0][0].meta["val"]  # type: ignore[index, union-attr]
    _forget_tracing(graph)
    return ExplanationGraph(
        graph,
        tuple(clip.shape),
        clip.dtype,
        int(logits.shape[1]),
        selection,
        precision,
        deepcopy(getattr(attributor, "info", {})),
        passes,
    )


def _forget_tracing(graph: fx.GraphModule) -> None:
    """Drop the stand-ins for values, which hold on to memory of the trace; shapes and module paths stay."""
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        kept = {"shape": tuple(value.shape), "dtype": value.dtype} if isinstance(value, torch.Tensor) else {}
        node.meta = {**kept, "custom": node.meta.get("custom", {})}
    finish(graph)
