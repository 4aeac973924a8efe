"""Divide what goes back through a max pool window by window: spread over voxels, all of it but the winners is zero.

A rule may divide a pool's relevance, voxel by voxel, by what follows from the pool's input: z^B by the first
convolution shifted by its bounds, ε by the convolution itself. At a winner that input is what the pool gave, so each
window has one divisor: for C3D's first pool, a quarter of the divisions and of the stabilisers before them. Values are
the same bit by bit, where the places of a window are a power of two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from ..rewriting import aten, call, constant_nodes, finish, inline, module_of
from .fold import evaluate
from .max_pools import FIRST_MAXIMA, in_pairs, spread, winners

Tensor = torch.Tensor


def divide_by_window(graph: fx.GraphModule) -> int:
    """Divide before spreading, in place, where the divisor follows from the pool's input; return how many pools."""
    constant = constant_nodes(graph)
    changed = 0
    for node in list(graph.graph.find_nodes(op="call_function", target=FIRST_MAXIMA)):
        args: Any = node.args
        _, source, pooled, kernel, stride, _, dilation = args
        if len(node.users) != 1 or not in_pairs(kernel, stride, dilation) or not _tile(kernel, pooled, source):
            continue
        (quotient,) = node.users
        if quotient.target != aten.div.Tensor or quotient.args[0] is not node:
            continue
        steps = _steps(source, quotient, constant)
        if steps is not None:
            _rewrite(graph, node, quotient, steps)
            changed += 1
    finish(graph)
    return changed


def _tile(kernel: Sequence[int], pooled: fx.Node, source: fx.Node) -> bool:
    """Say whether the windows are the whole input, with neither padding nor a rest."""
    windows, sizes = pooled.meta["val"].shape[2:], source.meta["val"].shape[2:]
    return all(length * k == size for length, k, size in zip(windows, kernel, sizes, strict=True))


def _steps(source: fx.Node, quotient: fx.Node, constant: set[fx.Node]) -> list[fx.Node] | None:
    """Return what is computed voxel by voxel from ``source`` to the divisor, in order; None where anything else is."""
    divisor = quotient.args[1]
    if not isinstance(divisor, fx.Node) or divisor in constant:
        return None
    found: set[fx.Node] = set()
    waiting = [divisor]
    while waiting:
        node = waiting.pop()
        if node is source or node in constant or node in found:
            continue
        # A piece of a tuple is taken by a function of Python's, which has no tags.
        if node.op != "call_function" or torch.Tag.pointwise not in getattr(node.target, "tags", ()):
            return None
        found.add(node)
        waiting += node.all_input_nodes
    # What something else needs too has to be computed for every voxel all the same.
    if any(user is not quotient and user not in found for node in found for user in node.users):
        return None
    return [node for node in quotient.graph.nodes if node in found]


def _rewrite(graph: fx.GraphModule, backward: fx.Node, quotient: fx.Node, steps: Sequence[fx.Node]) -> None:
    args: Any = backward.args
    gradient, source, pooled, kernel = args[:4]
    divisor: Any = quotient.args[1]
    dtype = quotient.meta["val"].dtype
    with graph.graph.inserting_before(quotient):
        mask = inline(graph, lambda values, maxima: winners(values, maxima, kernel).to(dtype), source, pooled)
        known = {source: pooled}
        for step in steps:
            for value in step.all_input_nodes:
                if value not in known:
                    known[value] = _at_winners(graph, value, mask, kernel)
            given: Any = fx.node.map_arg((step.args, step.kwargs), known.__getitem__)
            known[step] = call(graph.graph, step.target, *given[0], **given[1])
        divided = call(graph.graph, aten.div.Tensor, gradient, known[divisor])
        result = inline(graph, lambda values, mask: spread(values, mask, kernel), divided, mask)
    result.meta["custom"] = {"module": module_of(quotient)}
    quotient.replace_all_uses_with(result)


def _at_winners(graph: fx.GraphModule, constant: fx.Node, mask: fx.Node, kernel: Sequence[int]) -> fx.Node:
    """Return a constant array's value at each window's winner; it broadcasts where the array does."""
    sizes = constant.meta["val"].shape
    if sizes == mask.meta["val"].shape:
        return _by_regions(graph, constant, evaluate(graph, constant, {}), mask, kernel, [])
    if all(size == 1 or k == 1 for size, k in zip(reversed(sizes), reversed(kernel), strict=False)):
        return constant
    return _looked_up(graph, constant, mask, kernel)


def _by_regions(
    graph: fx.GraphModule,
    constant: fx.Node,
    value: Tensor,
    mask: fx.Node,
    kernel: Sequence[int],
    cuts: list[tuple[int, int, int]],
) -> fx.Node:
    """Look up only where a window holds several values: of what follows from padding, that is at the border."""
    axes = list(enumerate(kernel, value.ndim - len(kernel)))
    for axis, k in axes:
        windows = torch.stack(torch.split(value.movedim(axis, 0), k))
        differs = (windows != windows[:, :1]).flatten(1).any(1)
        if not differs.any():
            continue
        same = (~differs).nonzero().flatten().tolist()
        if not same or differs[same[0] : same[-1] + 1].any():
            # The last cut first, so that what is copied is small.
            for cut in reversed(cuts):
                mask = call(graph.graph, aten.slice.Tensor, mask, *cut)
            return _looked_up(graph, constant, mask, kernel)
        regions = []
        for start, end in pairwise((0, same[0], same[-1] + 1, len(differs))):
            if start < end:
                cut = (axis, start * k, end * k)
                part = call(graph.graph, aten.slice.Tensor, constant, *cut)
                within = value.narrow(axis, start * k, (end - start) * k)
                regions.append(_by_regions(graph, part, within, mask, kernel, [*cuts, cut]))
        return call(graph.graph, aten.cat.default, regions, axis)
    for axis, k in axes:
        constant = call(graph.graph, aten.slice.Tensor, constant, axis, 0, value.shape[axis], k)
    return constant


def _looked_up(graph: fx.GraphModule, constant: fx.Node, mask: fx.Node, kernel: Sequence[int]) -> fx.Node:
    def function(values: Tensor, mask: Tensor) -> Tensor:
        pool: Any = functional.avg_pool2d if len(kernel) == 2 else functional.avg_pool3d
        found: Tensor = pool(values * mask, kernel) * math.prod(kernel)
        return found

    return inline(graph, function, constant, mask)
