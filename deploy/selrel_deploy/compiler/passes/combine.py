"""Fewer and cheaper convolutions: sums of them become one, and small ones of the same input join.

z^B asks for three convolutions of the same relevance at the size of the input, two of them weighted by its bounds, all
summed over channels: four output channels say it all. And since sixteen cost as much as one (the width of a vector),
the places of the kernel along one axis (T) become channels too, to be added up afterwards.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from ..rewriting import Convolution, add_constant, aten, call, count_convolutions, finish, get_constant, viewed

# Up to this many output channels cost as much as one: the width of a vector.
_MOST_JOINED = 16


def combine(graph: fx.GraphModule) -> int:
    """Combine convolutions with constant weights in place; return how many went. Sums are taken in float64."""
    before = count_convolutions(graph)
    _share_without_bias(graph)
    for node in list(graph.graph.nodes):
        if node.target == aten.sum.dim_IntList:
            _distribute_sum(graph, node)
    finish(graph)
    for node in list(graph.graph.nodes):
        if node.target == aten.mul.Tensor:
            _absorb_scale(graph, node)
        elif node.target == aten.sum.dim_IntList:
            _sum_weights(graph, node)
        elif node.target in (aten.add.Tensor, aten.sub.Tensor) and not node.kwargs:
            _add_weights(graph, node)
    finish(graph)
    for group in siblings(convolutions(graph), _MOST_JOINED):
        join(graph, group)
    finish(graph)
    for node in convolutions(graph):
        unroll(graph, node, _MOST_JOINED)
    finish(graph)
    return before - count_convolutions(graph)


def absorb_offsets(graph: fx.GraphModule) -> int:
    """Make biases of numbers added to convolutions and linear layers, such as stabilisers; return how many.

    After precision: a number that a product in few bits takes in would be rounded with it.
    """
    absorbed = sum(
        _absorb_offset(graph, node) for node in graph.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    )
    finish(graph)
    return absorbed


def convolutions(graph: fx.GraphModule, biased: bool = False) -> list[fx.Node]:
    """Return the convolutions with constant weights, where ``biased`` those with a bias too."""
    return [
        node
        for node in graph.graph.find_nodes(op="call_function", target=aten.convolution.default)
        if _is_plain(node, biased) and viewed(node).input.op != "get_attr"
    ]


def _is_plain(value: Any, biased: bool = False) -> bool:
    """Say whether this is an ordinary convolution, its weight (and where that is allowed, its bias) a constant."""
    view = Convolution.of(value)
    if view is None:
        return False
    known = view.bias is None or (biased and view.bias.op == "get_attr")
    return view.weight.op == "get_attr" and known and not view.transposed


def _replace(graph: fx.GraphModule, node: fx.Node, like: fx.Node, weight: torch.Tensor) -> None:
    """Put a convolution like another, with another weight, in the place of a node."""
    view = viewed(like)
    with graph.graph.inserting_before(node):
        kernel = add_constant(graph, weight.to(view.constant_weight(graph).dtype))
        made = call(graph.graph, aten.convolution.default, *view._replace(weight=kernel))
    made.meta["custom"] = like.meta.get("custom", {})
    node.replace_all_uses_with(made)


def _weight(graph: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    return viewed(node).constant_weight(graph).double()


def _share_without_bias(graph: fx.GraphModule) -> None:
    """Take a convolution with a bias from the same one without, where relevance asks for that: it drops biases."""
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    plain = {(view.input, str(view[1:])): node for node in convolutions(graph) for view in (viewed(node),)}
    for node in list(graph.graph.find_nodes(op="call_function", target=aten.convolution.default)):
        view = viewed(node)
        bias, twin = view.bias, plain.get((view.input, str(view._replace(bias=None)[1:])))
        if bias is None or twin is None:
            continue
        if order[node] < order[twin]:
            node.prepend(twin)
        with graph.graph.inserting_before(node):
            column = call(graph.graph, aten.reshape.default, bias, [1, -1] + [1] * (node.meta["val"].ndim - 2))
            total = call(graph.graph, aten.add.Tensor, twin, column)
        twin.meta["custom"] = total.meta["custom"] = node.meta.get("custom", {})
        node.replace_all_uses_with(total)
    finish(graph)


def is_channel_sum(node: fx.Node) -> bool:
    """Say whether a sum is over channels alone, which go."""
    return bool(node.args[1] == [1] and len(node.args) == 2 and not node.kwargs)


def _distribute_sum(graph: fx.GraphModule, node: fx.Node) -> None:
    """Σ(a ± b) over channels is Σa ± Σb, where a convolution is among a and b, which then gives the sum alone."""
    source: Any = node.args[0]
    if not is_channel_sum(node) or source.target not in (aten.add.Tensor, aten.sub.Tensor) or source.kwargs:
        return
    parts: Any = source.args
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    if len(source.users) > 1 or any(not isinstance(part, fx.Node) or part.meta["val"].shape != shape for part in parts):
        return
    if not any(_leads_to_convolution(part) for part in parts):
        return
    with graph.graph.inserting_before(node):
        sums = [call(graph.graph, node.target, part, [1]) for part in parts]
        made = call(graph.graph, source.target, *sums)
    made.meta["custom"] = node.meta.get("custom", {})
    node.replace_all_uses_with(made)
    for part in sums:
        _distribute_sum(graph, part)


def _leads_to_convolution(value: Any) -> bool:
    """Say whether a value is a convolution, or one times a constant, or a sum of such."""
    if not isinstance(value, fx.Node) or len(value.users) > 1:
        return False
    if value.target == aten.mul.Tensor:
        first, second = value.args
        return any(
            _is_plain(a) and len(a.users) == 1 and b.op == "get_attr"
            for a, b in ((first, second), (second, first))
            if isinstance(a, fx.Node) and isinstance(b, fx.Node)
        )
    if value.target in (aten.add.Tensor, aten.sub.Tensor):
        return all(_leads_to_convolution(part) for part in value.args)
    return _is_plain(value)


def _sum_weights(graph: fx.GraphModule, node: fx.Node) -> None:
    """Σ over channels of conv(x, W) is conv(x, ΣW)."""
    product: Any = node.args[0]
    if not is_channel_sum(node) or not _is_plain(product) or len(product.users) > 1 or viewed(product).groups != 1:
        return
    with graph.graph.inserting_before(node):
        whole = call(graph.graph, aten.squeeze.dims, product, [1])
    node.replace_all_uses_with(whole)
    _replace(graph, product, product, _weight(graph, product).sum(0, keepdim=True))
    made = whole.args[0]
    whole.meta["val"] = made.meta["val"][:, 0]  # type: ignore[union-attr]


def unroll(graph: fx.GraphModule, node: fx.Node, most: int) -> bool:
    """Give each place of a kernel along its first long axis output channels of its own, and add them up, shifted.

    The convolution pads nothing along that axis: padded where its kernel is one wide, torch's takes four times as long.
    """
    view = viewed(node)
    stride, padding, dilation = view.for_each_axis()
    weight = view.constant_weight(graph)
    n = weight.ndim - 2
    axis = next((axis for axis in range(2, n + 2) if weight.shape[axis] > 1), None)
    if axis is None or view.groups != 1 or stride[axis - 2] != 1 or dilation[axis - 2] != 1:
        return False
    places, outputs = weight.shape[axis], len(weight)
    if places * outputs > most:
        return False
    length, total = view.input.meta["val"].shape[axis], node.meta["val"].shape[axis]
    before, padding[axis - 2] = padding[axis - 2], 0
    cut = torch.cat(torch.split(weight, 1, axis))
    with graph.graph.inserting_before(node):
        changed = view._replace(weight=add_constant(graph, cut), bias=None)
        changed = changed._replace(stride=stride, padding=padding, dilation=dilation)
        terms = call(graph.graph, aten.convolution.default, *changed)
        terms.meta["custom"] = node.meta.get("custom", {})
        whole: Any = None
        for place in range(places):
            # What the place adds at t is its term at t + shift; beyond the ends is padding.
            shift = place - before
            start, end = max(shift, 0), min(length, total + shift)
            if start >= end:
                continue
            term = call(graph.graph, aten.slice.Tensor, terms, 1, place * outputs, (place + 1) * outputs)
            term = call(graph.graph, aten.slice.Tensor, term, axis, start, end)
            pads = [0, 0] * (n + 1 - axis) + [start - shift, total + shift - end]
            term = call(graph.graph, aten.constant_pad_nd.default, term, pads)
            whole = term if whole is None else call(graph.graph, aten.add.Tensor, whole, term)
    node.replace_all_uses_with(whole)
    return True


def _absorb_scale(graph: fx.GraphModule, node: fx.Node) -> None:
    """conv(x, W)·c with one c per output channel is conv(x, W·c)."""
    for product, factor in (node.args, node.args[::-1]):
        if _is_plain(product) and len(product.users) == 1 and isinstance(factor, fx.Node) and factor.op == "get_attr":  # type: ignore[union-attr]
            scale, channels = get_constant(graph, str(factor.target)), node.meta["val"].shape[1]
            axes = scale.shape[1:] if scale.ndim == node.meta["val"].ndim else scale.shape
            per_channel = scale.ndim == node.meta["val"].ndim and scale.shape[0] == 1 and axes[0] in (1, channels)
            if per_channel and scale.numel() == axes[0] and scale.dtype == node.meta["val"].dtype:
                weight = _weight(graph, product)  # type: ignore[arg-type]
                shape = [-1] + [1] * (weight.ndim - 1)
                _replace(graph, node, product, weight * scale.double().reshape(shape))  # type: ignore[arg-type]
                return


def _absorb_offset(graph: fx.GraphModule, node: fx.Node) -> bool:
    """conv(x, W) + c is a convolution with the bias c; of a linear layer too."""
    args: Any = node.args
    product, offset = args
    if not isinstance(product, fx.Node) or not isinstance(offset, float) or node.kwargs or len(product.users) > 1:
        return False
    if not _is_plain(product) and not _is_plain_linear(product):
        return False
    source: Any = product.args
    value, weight, *geometry = source[:2] + source[3:]
    with graph.graph.inserting_before(product):
        bias = get_constant(graph, str(weight.target)).new_full((node.meta["val"].shape[1],), offset)
        made = call(graph.graph, product.target, value, weight, add_constant(graph, bias), *geometry)
    made.meta["custom"] = product.meta.get("custom", {})
    node.replace_all_uses_with(made)
    return True


def _is_plain_linear(value: fx.Node) -> bool:
    """Say whether this is a linear layer of [B,C] without bias, its weight a constant."""
    if value.target != aten.linear.default or value.meta["val"].ndim != 2:
        return False
    return value.args[1].op == "get_attr" and (len(value.args) < 3 or value.args[2] is None)  # type: ignore[union-attr]


def _add_weights(graph: fx.GraphModule, node: fx.Node) -> None:
    """conv(x, V) ± conv(x, W) is conv(x, V ± W)."""
    first, second = node.args
    if not (_is_plain(first) and _is_plain(second) and first is not second):
        return
    if _key(first) != _key(second) or len(first.users) > 1 or len(second.users) > 1:  # type: ignore[arg-type, union-attr]
        return
    weights = _weight(graph, first), _weight(graph, second)  # type: ignore[arg-type]
    if weights[0].shape == weights[1].shape:
        _replace(graph, node, first, weights[0] + (-1 if node.target == aten.sub.Tensor else 1) * weights[1])  # type: ignore[arg-type]


def _key(node: fx.Node) -> Any:
    """Return what two convolutions must share to be one: the input, the geometry, the size of the kernel."""
    view = viewed(node)
    return (view.input, str(view.geometry), view.weight.meta["val"].shape[2:])


def siblings(nodes: Iterable[fx.Node], most: int) -> list[list[fx.Node]]:
    """Return those that could be one, of at most ``most`` output channels."""
    found: dict[Any, list[fx.Node]] = {}
    for node in nodes:
        if viewed(node).groups == 1:
            found.setdefault(_key(node), []).append(node)
    return [
        group for group in found.values()
        if len(group) > 1 and sum(node.meta["val"].shape[1] for node in group) <= most
    ]  # fmt: skip


def join(graph: fx.GraphModule, group: list[fx.Node]) -> None:
    """Compute convolutions of the same input at once, and cut their channels apart."""
    first = group[0]
    views = [viewed(node) for node in group]
    weights = [view.constant_weight(graph) for view in views]
    biases = [view.constant_bias(graph) for view in views]
    with graph.graph.inserting_before(first):
        kernel = add_constant(graph, torch.cat(weights))
        bias = None
        if any(given is not None for given in biases):
            pairs = zip(weights, biases, strict=True)
            parts = [weight.new_zeros(len(weight)) if given is None else given for weight, given in pairs]
            bias = add_constant(graph, torch.cat(parts))
        joined = call(graph.graph, aten.convolution.default, *views[0]._replace(weight=kernel, bias=bias))
        joined.meta["custom"] = first.meta.get("custom", {})
        pieces = call(graph.graph, aten.split_with_sizes.default, joined, [len(weight) for weight in weights], 1)
        for number, node in enumerate(group):
            piece = graph.graph.call_function(operator.getitem, (pieces, number))
            piece.meta = dict(node.meta)
            node.replace_all_uses_with(piece)
