"""Say everything once, and nothing that changes nothing: common subexpressions, identities, dead code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..rewriting import aten, call, finish


def simplify(graph: fx.GraphModule) -> int:
    """Simplify a lowered graph in place until nothing changes; return how many nodes went. Values stay the same."""
    before = len(graph.graph.nodes)
    changed = True
    while changed:
        changed = merge_repeated(graph) + drop_identities(graph) > 0
    finish(graph)
    return before - len(graph.graph.nodes)


def merge_repeated(graph: fx.GraphModule) -> int:
    """Compute every call with the same arguments once: Zennit repeats the forward pass in its hooks."""
    known: dict[Any, fx.Node] = {}
    merged = 0
    for node in list(graph.graph.nodes):
        if node.op not in ("call_function", "get_attr"):
            continue
        key = (node.op, node.target, _hashable(node.args), _hashable(node.kwargs))
        first = known.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.graph.erase_node(node)
            merged += 1
    return merged


def _hashable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_hashable(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, _hashable(item)) for key, item in sorted(value.items()))
    # 0 and 0.0 and False are equal to Python and differ in what dtype they give.
    return (type(value), value)


def drop_identities(graph: fx.GraphModule) -> int:
    """Replace calls by simpler ones of the same value; return how many were."""
    replaced = 0
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not node.users:
            continue
        rule = _RULES.get(node.target)
        with graph.graph.inserting_before(node):
            simpler = rule(graph.graph, node) if rule else None
        if simpler is not None:
            if "val" not in simpler.meta:
                simpler.meta = dict(node.meta)
            node.replace_all_uses_with(simpler)
            graph.graph.erase_node(node)
            replaced += 1
    return replaced


def multiply_for_choices(graph: fx.GraphModule) -> int:
    """Write ``where(c, a, b)`` of two numbers, such as a stabiliser's, as c·(a−b) + b where that is exact.

    ONNX Runtime chooses more slowly than it multiplies and adds. Return how many; torch alone is faster without.
    """
    changed = 0
    for node in list(graph.graph.find_nodes(op="call_function", target=aten.where.self)):
        condition, *choices = node.args
        dtype = node.meta["val"].dtype
        if not dtype.is_floating_point or any(source.target != aten.scalar_tensor.default for source in choices):
            continue
        chosen, other = (float(source.args[0]) for source in choices)
        step = torch.tensor(chosen, dtype=dtype) - torch.tensor(other, dtype=dtype)
        if step + torch.tensor(other, dtype=dtype) != torch.tensor(chosen, dtype=dtype):
            continue
        with graph.graph.inserting_before(node):
            one = call(graph.graph, aten._to_copy.default, condition, dtype=dtype)
            made = call(graph.graph, aten.add.Tensor, call(graph.graph, aten.mul.Tensor, one, step.item()), other)
        node.replace_all_uses_with(made)
        changed += 1
    finish(graph)
    return changed


Rule = Callable[[fx.Graph, fx.Node], fx.Node | None]


def _same_shape(node: fx.Node, value: Any) -> bool:
    """Say whether ``value`` is a node with the shape and dtype of ``node``."""
    if not isinstance(value, fx.Node):
        return False
    ours: Any = node.meta.get("val")
    others: Any = value.meta.get("val")
    return bool(
        isinstance(ours, torch.Tensor)
        and isinstance(others, torch.Tensor)
        and ours.shape == others.shape
        and ours.dtype == others.dtype
    )


def _is_full(value: Any, fill: float) -> bool:
    if isinstance(value, bool | int | float):
        return bool(value == fill)
    return isinstance(value, fx.Node) and value.target == aten.full.default and bool(value.args[1] == fill)


def _narrowed(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Let arithmetic broadcast an expanded operand itself."""
    for place, other in ((0, 1), (1, 0)):
        value = node.args[place]
        if isinstance(value, fx.Node) and value.target == aten.expand.default and _same_shape(node, node.args[other]):
            args = list(node.args)
            args[place] = value.args[0]
            return graph.call_function(node.target, tuple(args), node.kwargs)  # type: ignore[arg-type]
    return None


def _add(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    first, second = node.args[:2]
    if _is_full(second, 0) and _same_shape(node, first):
        return first  # type: ignore[return-value]
    if _is_full(first, 0) and _same_shape(node, second) and not node.kwargs and node.target == aten.add.Tensor:
        return second  # type: ignore[return-value]
    return _narrowed(graph, node)


def _sub(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    first, second = node.args[:2]
    if _is_full(first, 0) and _same_shape(node, second) and not node.kwargs:
        return graph.call_function(aten.neg.default, (second,))
    return _add(graph, node)


def _mul(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    first, second = node.args
    if _is_full(second, 1) and _same_shape(node, first):
        return first  # type: ignore[return-value]
    if _is_full(first, 1) and _same_shape(node, second) and node.target == aten.mul.Tensor:
        return second  # type: ignore[return-value]
    return _narrowed(graph, node)


def _if_same_shape(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    return node.args[0] if _same_shape(node, node.args[0]) else None  # type: ignore[return-value]


def _pad(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    return None if any(node.args[1]) else node.args[0]  # type: ignore[arg-type, return-value]


def _reshape(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    source: Any = node.args[0]
    if _same_shape(node, source):
        return source  # type: ignore[no-any-return]
    if source.target == aten.reshape.default:
        return graph.call_function(aten.reshape.default, (source.args[0], node.args[1]))
    return None


def _squeeze(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """One way to say it, and one that the ONNX exporter has a function for."""
    return graph.call_function(aten.reshape.default, (node.args[0], list(node.meta["val"].shape)))


def _permute(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    source, order = node.args
    return source if list(order) == list(range(len(order))) else None  # type: ignore[arg-type, return-value]


def _transposed(value: Any) -> Any:
    """Return what ``value`` is the transpose of, if it is one."""
    if isinstance(value, fx.Node):
        if value.target == aten.t.default:
            return value.args[0]
        if value.target == aten.permute.default and list(value.args[1]) == [1, 0]:  # type: ignore[arg-type]
            return value.args[0]
    return None


def _transpose(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    return _transposed(node.args[0])  # type: ignore[no-any-return]


def _mm(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """R·Wᵀ as a linear layer: forward and backward then share one W."""
    values, matrix = node.args
    weight = _transposed(matrix)
    return None if weight is None else graph.call_function(aten.linear.default, (values, weight))


def _addmm(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    bias, values, matrix = node.args
    weight = _transposed(matrix)
    if weight is None or node.kwargs or bias.meta["val"].ndim != 1:  # type: ignore[union-attr]
        return None
    return graph.call_function(aten.linear.default, (values, weight, bias))


_RULES: dict[Any, Rule] = {
    aten._to_copy.default: _if_same_shape,
    aten.add.Tensor: _add,
    aten.addmm.default: _addmm,
    aten.constant_pad_nd.default: _pad,
    aten.div.Tensor: _mul,
    aten.expand.default: _if_same_shape,
    aten.mm.default: _mm,
    aten.mul.Tensor: _mul,
    aten.permute.default: _permute,
    aten.reshape.default: _reshape,
    aten.slice.Tensor: _if_same_shape,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.sub.Tensor: _sub,
    aten.t.default: _transpose,
}
