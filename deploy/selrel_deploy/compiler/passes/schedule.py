"""The order of a graph's operations: what lets a large array go is computed as soon as it can be.

A pool's relevance needs to know its winners, not its input; the divisor of z^B needs the first convolution shifted, not
as it is. Traced, both wait until relevance comes to them, at the end, and keep the largest arrays of the forward pass
alive until then. An order changes no value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..rewriting import aten, constant_nodes, finish

# What makes new information at a price: the forward pass and relevance come to it in their own time.
_PRODUCTS = frozenset({aten.bmm.default, aten.convolution.default, aten.linear.default, aten.mm.default})


def shorten_lives(graph: fx.GraphModule) -> int:
    """Move forward, in place, what follows from one array alone and is no larger; return how many operations went."""
    constant = constant_nodes(graph)
    moved = 0
    for node in reversed(list(graph.graph.nodes)):
        if node.op == "call_function" and node not in constant:
            moved += _hurry(node, constant)
    finish(graph)
    return moved


def _hurry(value: fx.Node, constant: set[fx.Node]) -> int:
    """Move what follows from ``value`` alone to where the first other operation comes after it, if that frees it."""
    following, late, other = {value}, [], None
    node = value.next
    while node.op != "output":
        sources = set(node.all_input_nodes) - constant
        if node.target not in _PRODUCTS and sources and sources <= following:
            following.add(node)
            if other is not None:
                late.append(node)
        elif value in node.all_input_nodes:
            return 0  # it is needed there all the same
        elif node not in constant and other is None:
            other = node
        node = node.next
    if other is None or not late or "output" in {user.op for user in value.users}:
        return 0
    kept = [node for node in late if not node.users.keys() <= following]
    if sum(map(_bytes, kept)) > _bytes(value):
        return 0
    for node in late:
        _bring(node, other, constant)
    return len(late)


def _bring(node: fx.Node, place: fx.Node, constant: set[fx.Node]) -> None:
    """Put a node, and what it needs of constants, before another one."""
    for source in node.all_input_nodes:
        if source in constant and place < source:
            _bring(source, place, constant)
    place.prepend(node)


def _bytes(node: fx.Node) -> int:
    values: Any = node.meta["val"]
    values = values if isinstance(values, list | tuple) else [values]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))
