"""Arithmetic in the memory of an operand that nothing reads again: fewer large arrays at once, and fewer to fetch."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from ..rewriting import aten, finish

_IN_PLACE: dict[Any, Any] = {
    aten.abs.default: aten.abs_.default,
    aten.add.Tensor: aten.add_.Tensor,
    aten.clamp.default: aten.clamp_.default,
    aten.div.Tensor: aten.div_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.neg.default: aten.neg_.default,
    aten.relu.default: aten.relu_.default,
    aten.sub.Tensor: aten.sub_.Tensor,
}
_EITHER = frozenset({aten.add.Tensor, aten.mul.Tensor})
# Views of all of an array, each of its values once.
_WHOLE_VIEWS = frozenset({aten.reshape.default, aten.unsqueeze.default, aten.view.default})


def compute_in_place(graph: fx.GraphModule) -> int:
    """Let arithmetic overwrite its first operand (of a sum or product either) where it may; return how often.

    It may where the operand and all views of its memory are read for the last time, and the memory belongs to the
    graph: not to an input, a constant or an output. Nodes must carry ``shape`` and ``dtype``.
    """
    place = {node: index for index, node in enumerate(graph.graph.nodes)}
    memory: dict[fx.Node, frozenset[fx.Node]] = {}
    last: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        shared = [memory[source] for source in node.all_input_nodes] if _is_view(node) else []
        memory[node] = frozenset().union(*shared) if shared else frozenset({node})
        for source in node.all_input_nodes:
            for owner in memory[source]:
                last[owner] = place[node]
    changed = 0
    for node in list(graph.graph.nodes):
        if node.target not in _IN_PLACE:
            continue
        for operand in range(2 if node.target in _EITHER and node.kwargs.get("alpha", 1) == 1 else 1):
            if len(node.args) > operand and _may_overwrite(node, node.args[operand], memory, last, place):
                args = list(node.args)
                args[0], args[operand] = args[operand], args[0]
                # Nothing reads the memory by another name any more: it is as if it were new.
                node.target, node.args = _IN_PLACE[node.target], tuple(args)
                changed += 1
                break
    finish(graph)
    return changed


def _is_view(node: fx.Node) -> bool:
    """Say whether a result may lie in the memory of an argument."""
    if node.target in (operator.getitem, aten._unsafe_view.default):
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


def _may_overwrite(
    node: fx.Node, operand: Any, memory: dict[fx.Node, frozenset[fx.Node]], last: dict[fx.Node, int], place: Any
) -> bool:
    if not isinstance(operand, fx.Node):
        return False
    same = all(operand.meta.get(key) == node.meta.get(key) for key in ("shape", "dtype"))
    if not same or operand.meta.get("shape") is None:
        return False
    source = operand
    while source.target in _WHOLE_VIEWS:
        source = source.args[0]  # type: ignore[assignment]
    if source.op != "call_function" or (_is_view(source) and source.target not in _IN_PLACE.values()):
        return False
    others = [value for value in node.all_input_nodes if value is not operand]
    return all(last[owner] == place[node] for owner in memory[operand]) and not any(
        memory[operand] & memory[value] for value in others
    )
