"""Compute what depends on constants alone, once and for all: clamped and flipped weights, the constants of z^B."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import fx

from ..rewriting import add_constant, aten, constant_nodes, finish, get_constant

# These cost nothing at run time and much as a constant.
_LEFT = frozenset({aten.expand.default, aten.full.default, aten.scalar_tensor.default})
_MULTIPLY = frozenset({aten.convolution.default, aten.mm.default, aten.linear.default, aten.addmm.default})
# Constants below this are kept as they are, however repetitive.
_WORTH_PACKING = 1 << 20
# A border is one or two runs to each side.
_MOST_RUNS = 8


def fold(graph: fx.GraphModule) -> int:
    """Replace every value that depends on no input by a constant; return how many values were computed.

    Sums of products are taken in float64 and rounded once.
    """
    constant = constant_nodes(graph)
    values: dict[fx.Node, Any] = {}
    folded = 0
    for node in list(graph.graph.nodes):
        if node not in constant or node.op == "get_attr" or all(user in constant for user in node.users):
            continue
        if node.target in _LEFT or not isinstance(node.meta.get("val"), torch.Tensor):
            # What it is made of becomes constant all the same.
            sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
        else:
            sources = [node]
        for source in sources:
            with graph.graph.inserting_before(source):
                made = add_constant(graph, evaluate(graph, source, values).contiguous())
            made.meta["custom"] = source.meta.get("custom", {})
            source.replace_all_uses_with(made)
            constant.add(made)
            folded += 1
    share_equal_constants(graph)
    finish(graph)
    return folded


def evaluate(graph: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """Return the value of a node that follows from constants alone; ``values`` keeps what is computed on the way."""
    if node not in values:
        if node.op == "get_attr":
            return get_constant(graph, str(node.target))
        args: Any
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: evaluate(graph, source, values))
        target: Any = node.target
        if target in _MULTIPLY and any(_is_single(value) for value in args):
            args = tuple(value.double() if _is_single(value) else value for value in args)
            values[node] = target(*args, **kwargs).float()
        else:
            values[node] = target(*args, **kwargs)
    return values[node]


def _is_single(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def share_equal_constants(graph: fx.GraphModule) -> int:
    """Keep one of several constants with the same values; return how many went."""
    seen: dict[Any, list[fx.Node]] = {}
    shared = 0
    for node in list(graph.graph.find_nodes(op="get_attr")):
        value = get_constant(graph, str(node.target))
        key = (value.dtype, tuple(value.shape), float(value.sum()) if value.numel() else 0.0)
        for other in seen.setdefault(key, []):
            if torch.equal(value, get_constant(graph, str(other.target))):
                if node.target != other.target:
                    shared += 1
                node.target = other.target
                break
        else:
            seen[key].append(node)
    finish(graph)
    return shared


def pack_constants(graph: fx.GraphModule) -> int:
    """Hold a large constant whose slices repeat by its distinct slices; return the bytes saved.

    The constant of z^B is the same at every voxel but for the border: 51 MB in C3D become a few kilobytes, put together
    again at run time in about the time that reading it would take.
    """
    saved = 0
    for node in list(graph.graph.find_nodes(op="get_attr")):
        value = get_constant(graph, str(node.target))
        if value.numel() * value.element_size() < _WORTH_PACKING:
            continue
        packed, runs = value, {}
        for axis in range(value.ndim):
            starts = _run_starts(packed, axis)
            if 2 * len(starts) <= packed.shape[axis] and len(starts) <= _MOST_RUNS:
                runs[axis] = [end - start for start, end in pairwise([*starts, packed.shape[axis]])]
                packed = packed.index_select(axis, torch.tensor(starts))
        if not runs:
            continue
        saved += (value.numel() - packed.numel()) * value.element_size()
        with graph.graph.inserting_before(node.next):
            made = add_constant(graph, packed.contiguous())
            for axis, lengths in runs.items():
                made = _unpack(graph.graph, made, axis, lengths)
        node.replace_all_uses_with(made)
    finish(graph)
    return saved


def _unpack(graph: fx.Graph, packed: fx.Node, axis: int, lengths: list[int]) -> fx.Node:
    """Repeat the slices along an axis, each as often as ``lengths`` says."""
    value = packed.meta["val"]
    pieces = []
    for index, length in enumerate(lengths):
        piece = graph.call_function(aten.slice.Tensor, (packed, axis, index, index + 1))
        piece.meta["val"] = value.narrow(axis, index, 1)
        shape = list(piece.meta["val"].shape)
        shape[axis] = length
        pieces.append(graph.call_function(aten.expand.default, (piece, shape)))
        pieces[-1].meta["val"] = piece.meta["val"].expand(shape)
    whole = graph.call_function(aten.cat.default, (pieces, axis))
    whole.meta["val"] = torch.cat([piece.meta["val"] for piece in pieces], axis)
    return whole


def _run_starts(value: torch.Tensor, axis: int) -> list[int]:
    """Return where along an axis a slice differs from the one before; all places, unseen, where most surely do."""
    length = value.shape[axis]
    middle = length // 2
    if length < 2 or not torch.equal(value.select(axis, middle), value.select(axis, middle - 1)):
        return list(range(length))
    return [
        index
        for index in range(length)
        if index == 0 or not torch.equal(value.select(axis, index), value.select(axis, index - 1))
    ]
