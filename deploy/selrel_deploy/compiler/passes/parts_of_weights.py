"""Linear layers' positive and negative weights: what a graph holds of them, and how torch multiplies by them.

z⁺ and αβ want W⁺, W⁻ beside W. A linear layer reads each of its weights once, so that it can clamp them while they pass
through the cache; kept, W⁺ is as large as W. Runtimes that pack their weights at loading take it as a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from ..rewriting import add_constant, aten, call, constant_bytes, finish, get_constant
from .simplify import merge_repeated

_PRODUCTS = (aten.linear.default, aten.mm.default)
_Bounds = tuple[float | None, float | None]
_BOUNDS: tuple[_Bounds, ...] = ((0.0, None), (None, 0.0))
# Rows of a weight that stay in the cache between clamping and multiplying.
_BLOCK = 1 << 19


def clamp_at_run_time(graph: fx.GraphModule) -> int:
    """Replace constants that are a part of another by ``clamp`` of it, where linear layers alone take them.

    Return the bytes of constants saved. Values stay the same.
    """
    nodes: dict[str, list[fx.Node]] = {}
    for node in graph.graph.find_nodes(op="get_attr"):
        nodes.setdefault(str(node.target), []).append(node)
    constants = {name: get_constant(graph, name) for name in nodes}
    weights = [
        name for name, its in nodes.items() if all(_is_weight(user, node) for node in its for user in node.users)
    ]
    parts: dict[str, tuple[str, _Bounds]] = {}
    for name in weights:
        wholes = {other: value for other, value in constants.items() if other != name and other not in parts}
        if (found := _part_of(constants[name], wholes)) is not None:
            parts[name] = found
    held = constant_bytes(graph)
    for name, (whole, bounds) in parts.items():
        for node in nodes[name]:
            for user in list(node.users):
                user.replace_input_with(node, _clamped(graph, user, whole, bounds, node))
    finish(graph)
    return held - constant_bytes(graph)


def _is_weight(user: fx.Node, node: fx.Node) -> bool:
    """Say whether a linear layer takes a value as its weight, and as nothing else."""
    return user.target in _PRODUCTS and user.args[1] is node and node not in (user.args[0], *user.args[2:])


def _part_of(part: torch.Tensor, wholes: Mapping[str, torch.Tensor]) -> tuple[str, _Bounds] | None:
    """Return the name of what a constant is the positive or the negative part of, and where that is clamped."""
    for name, whole in wholes.items():
        if whole.shape == part.shape and whole.is_floating_point():
            for bounds in _BOUNDS:
                if torch.equal(whole.clamp(*bounds).to(part.dtype), part):
                    return name, bounds
    return None


def _clamped(graph: fx.GraphModule, user: fx.Node, whole: str, bounds: _Bounds, part: fx.Node) -> fx.Node:
    """Insert the clamped weight before a product, in the dtype of the constant it was."""
    with graph.graph.inserting_before(user):
        source = graph.graph.get_attr(whole)
        source.meta["val"] = get_constant(graph, whole).to("meta")
        made = call(graph.graph, aten.clamp.default, source, *bounds)
        if source.meta["val"].dtype != part.meta["val"].dtype:
            made = call(graph.graph, aten._to_copy.default, made, dtype=part.meta["val"].dtype)
    made.meta["custom"] = part.meta.get("custom", {})
    return made


def clamp_now(graph: fx.GraphModule) -> int:
    """Make constants of what ``clamp_at_run_time`` left to the run; return how many."""
    merge_repeated(graph)
    made = 0
    for node in list(graph.graph.nodes):
        if node.target not in (aten.clamp.default, aten._to_copy.default) or node.args[0].op != "get_attr":
            continue
        source, *settings = node.args
        with graph.graph.inserting_before(node):
            value = node.target(get_constant(graph, str(source.target)), *settings, **node.kwargs)
            constant = add_constant(graph, value)
        constant.meta = dict(node.meta)
        node.replace_all_uses_with(constant)
        made += 1
    finish(graph)
    return made


@torch.library.custom_op("selrel::clamped_linear", mutates_args=())
def clamped_linear(
    values: torch.Tensor,
    weight: torch.Tensor,
    low: float | None,
    high: float | None,
    dtype: torch.dtype,
    backward: bool,
) -> torch.Tensor:
    """Return values · clamp(weight)ᵀ, or going backward values · clamp(weight), with the clamped weight in ``dtype``.

    The weight [O,I] is taken some rows at a time.
    """
    rows = min(max(1, _BLOCK // weight.shape[1]), len(weight))
    # One piece of memory for all blocks: fresh memory costs more than the clamping.
    clamped = weight.new_empty(rows, weight.shape[1])
    blocks = (torch.clamp(block, low, high, out=clamped[: len(block)]).to(dtype) for block in torch.split(weight, rows))
    if not backward:
        return torch.cat([functional.linear(values, block) for block in blocks], -1)
    # Sums of many blocks, in half a number's digits, would lose what a single product keeps.
    wide = torch.promote_types(dtype, torch.float32)
    total = torch.zeros(*values.shape[:-1], weight.shape[1], dtype=wide, device=values.device)
    for share, block in zip(torch.split(values, rows, -1), blocks, strict=True):
        total += share @ block
    return total.to(dtype)


@clamped_linear.register_fake
def _(values: torch.Tensor, weight: torch.Tensor, *settings: Any) -> torch.Tensor:
    backward = settings[-1]
    return values.new_empty(*values.shape[:-1], weight.shape[1 if backward else 0])


def multiply_in_blocks(graph: fx.GraphModule) -> int:
    """Clamp weights some rows at a time where ``clamp_at_run_time`` left it to the run; return in how many products."""
    changed = 0
    for node in list(graph.graph.nodes):
        if node.target not in _PRODUCTS:
            continue
        args: Any = node.args
        values, weight, *bias = args
        clamped, dtype = weight, weight.meta.get("dtype")
        if weight.target == aten._to_copy.default:
            clamped, dtype = weight.args[0], weight.kwargs["dtype"]
        if clamped.target != aten.clamp.default or clamped.args[0].op != "get_attr":
            continue
        with graph.graph.inserting_before(node):
            settings = (*clamped.args, dtype, node.target == aten.mm.default)
            made = graph.graph.call_function(_CLAMPED_LINEAR, (values, *settings))
            made.meta = dict(node.meta)
            if bias and bias[0] is not None:
                made = graph.graph.call_function(aten.add.Tensor, (made, bias[0]))
                made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        graph.graph.erase_node(node)
        changed += 1
    finish(graph)
    return changed


_CLAMPED_LINEAR = torch.ops.selrel.clamped_linear.default
