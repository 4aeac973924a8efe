"""compile_explanation: an attributor → ExplanationGraph, one flat graph that explains clips of one shape."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.utils._pytree import tree_map_only
from zennit.attribution import Attributor

from selrel_zennit.attribution.foreign import Method, as_attributor
from selrel_zennit.errors import InputError
from selrel_zennit.selection.regions import RegionSelection
from selrel_zennit.selection.selections import CalibratedSelection, MotionSelection, Selection, Selective

from ..artifact.format import OUTPUTS
from ..precisions import split_precision
from .capture.lower import lower
from .capture.trace import trace
from .pipelines import FORMS, Options, of_all_forms, of_form
from .rewriting import constant_bytes, copied, count_convolutions, without_code


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
    ``form`` gives the same graph as those who run it are faster with it.
    """

    clip_shape: tuple[int, ...]
    dtype: torch.dtype
    num_classes: int
    selection: Selection
    precision: str
    info: dict[str, Any]
    # Before its last passes, which differ for those who run it, and what the others did.
    _source: fx.GraphModule = field(repr=False)
    _reports: list[PassReport] = field(repr=False)
    # The network as it was given: what golden logits come from, and are held against.
    network: nn.Module | None = field(repr=False, default=None)
    _forms: dict[str, fx.GraphModule] = field(repr=False, default_factory=dict)

    outputs = OUTPUTS

    def __repr__(self) -> str:
        what = f"{self.info.get('method')} on {self.info.get('model')}"
        shape = "×".join(map(str, self.clip_shape))
        return f"ExplanationGraph({what}, clip {shape}, {self.num_classes} classes, {self.precision})"

    @property
    def module(self) -> fx.GraphModule:
        """The plain form: a graph of ATen operations that any device's torch runs."""
        return self.form("plain")

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
            outputs: tuple[torch.Tensor, ...] = self.form("eager")(clip, target)
        return outputs

    @cached_property
    def passes(self) -> list[PassReport]:
        """What the passes did, up to the plain form, and last for compilers."""
        return [*self._reports, _report("plain", self.module), _report("compiled", self.form("compiled"))]

    def form(self, name: str, *, split: bool = False) -> fx.GraphModule:
        """Return the graph in a form of ``pipelines.FORMS``: plain, eager, compiled, inductor or onnx.

        ``split`` leaves the forward pass of the form onnx by itself. That form is made anew at each call: it holds
        weights of its own. Raises InputError for another name.
        """
        if name not in FORMS:
            raise InputError(f"no form named {name!r} of a graph; there are {', '.join(FORMS)}")
        if name in self._forms:
            return self._forms[name]
        base = FORMS[name].on
        made = copied(self._source if base is None else self.form(base))
        for one in of_form(name):
            replaced = one.run(made, Options(self.precision, split))
            made = replaced if isinstance(replaced, fx.GraphModule) else made
        if name != "onnx":
            self._forms[name] = made
        return made


@without_code
def compile_explanation(
    attributor: Method,
    clip: torch.Tensor,
    selection: Selection | None = None,
    precision: str = "fp32",
    *,
    model: nn.Module | None = None,
) -> ExplanationGraph:
    """Turn a Zennit attributor into one static graph: same values, no hooks, no autograd, no Zennit.

    ``attributor`` may also be a Zennit composite, or the name of a method, for ``model``. ``clip`` is an example
    [B,3,T,H,W] of the shape and dtype to compile for; its values do not matter. ``selection`` (default:
    MotionSelection(); a CalibratedSelection too) becomes part of the graph; of a Selective attributor it is the
    attributor's own. ``precision`` is one of ``precisions.PRECISIONS``, in all of which clip and outputs are float32;
    with "fp32" the graph's arithmetic has the clip's dtype. The model is left as it was, and changing it later changes
    no graph.

    Raises InputError for a Selective attributor together with ``selection``, thresholds that were calibrated for
    another method or model, a model in training mode, an unknown precision, one that the method cannot have (int8
    where relevance may cancel), and for what no static graph can hold: decisions by value, operations without a rule
    (named, with the module they come from).
    """
    split_precision(precision)
    if precision != "fp32" and clip.dtype != torch.float32:
        raise InputError(f"{precision} is for float32 clips, got {clip.dtype}: give clip.float() and a float32 model")
    if isinstance(attributor, Selective):
        if selection is not None:
            raise InputError("the attributor selects already: pass Selective(…) or a selection, not both")
        attributor, selection = attributor.attributor, attributor.selection
    if isinstance(attributor, Attributor):
        model = attributor.model if model is None else model
    elif model is None:
        raise InputError("a composite and a method's name are for a network: give model=…")
    if clip.ndim != 5:
        raise InputError(f"the clip must be [B,3,T,H,W], got {tuple(clip.shape)}")
    attributor = as_attributor(attributor, model, clip=clip)
    if any(module.training for module in attributor.model.modules()):
        raise InputError("the model is in training mode: call model.eval() before compiling its explanation")
    selection = selection or MotionSelection()
    if isinstance(selection, RegionSelection):
        raise InputError("regions (--preset fdr) are selected in torch alone: compile with --preset calibrated")
    if isinstance(selection, CalibratedSelection):
        selection.check(attributor)
    graph = trace(attributor, clip, selection)
    reports = [_report("trace", graph)]
    graph = lower(graph)
    reports.append(_report("lower", graph))
    for one in of_all_forms():
        one.run(graph, Options(precision))
        reports.append(_report(one.name, graph))
    logits = graph.graph.output_node().args[0][0].meta["val"]  # type: ignore[index, union-attr]
    _forget_tracing(graph)
    return ExplanationGraph(
        tuple(clip.shape),
        clip.dtype,
        int(logits.shape[1]),
        selection,
        precision,
        _info(attributor),
        graph,
        reports,
        getattr(attributor, "network", attributor.model),
    )


def _report(name: str, graph: fx.GraphModule) -> PassReport:
    operations = sum(node.op == "call_function" for node in graph.graph.nodes)
    return PassReport(name, operations, count_convolutions(graph), constant_bytes(graph))


def _info(attributor: Attributor) -> dict[str, Any]:
    """Return what a registered method says of itself, and the model's class names where it has them."""
    names = getattr(attributor.model, "class_names", None)
    said = deepcopy(getattr(attributor, "info", {}))
    return said if names is None else {**said, "class_names": list(names)}


def _forget_tracing(graph: fx.GraphModule) -> None:
    """Replace the stand-ins for values, which hold on to memory of the trace, by shapes alone."""
    for node in graph.graph.nodes:
        values = tree_map_only(torch.Tensor, lambda value: torch.empty_like(value, device="meta"), node.meta.get("val"))
        node.meta = {"val": values, "custom": node.meta.get("custom", {})}
