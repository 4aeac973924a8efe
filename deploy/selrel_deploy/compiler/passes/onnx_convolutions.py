"""Convolutions as runtimes of ONNX files are faster with them: wide ones join, others are taken apart in time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import fx

from ..rewriting import add_constant, aten, call, count_convolutions, finish, viewed
from .combine import convolutions, is_channel_sum, join, siblings, unroll

# Measured on C3D's DTD: as wide as this takes 3 % off in ONNX Runtime; twice as wide takes off nothing more.
_MOST_JOINED_WIDE = 512
# Measured on C3D's DTD: in ONNX Runtime conv2's backward, of which 64 channels come, takes 15 % less; wider ones gain
# nothing.
_MOST_UNROLLED = 192
# Measured on C3D's layers: in ONNX Runtime those of four frames, of whose products one in six meets padding, take 10 to
# 12 % less, those of two frames 9 to 30 %; those of eight take a little less, and in OpenVINO more.
_ONE_IN = 6
# Of a clip.
_CHANNELS = 3


def join_wide(graph: fx.GraphModule) -> int:
    """Compute convolutions of the same input at once, also wide ones; return how many went.

    ONNX Runtime writes out what each voxel's product takes, 27 times the input: for a layer and its z⁺ then once.
    """
    before = count_convolutions(graph)
    uses: Counter[str] = Counter()
    for node in graph.graph.find_nodes(op="get_attr"):
        uses[str(node.target)] += len(node.users)
    # A weight that something else takes too would be there twice.
    alone = [node for node in convolutions(graph, biased=True) if uses[str(viewed(node).weight.target)] == 1]
    for group in siblings(alone, _MOST_JOINED_WIDE):
        join(graph, group)
    finish(graph)
    return before - count_convolutions(graph)


def unroll_in_time(graph: fx.GraphModule) -> int:
    """Make the kernel's places along T channels of their own, where few come out and many go in; return how many went.

    ONNX Runtime writes out what each voxel's product takes, then a third of it; what it costs is sums of the output.
    """
    changed = 0
    for node in convolutions(graph):
        outputs, inputs, *places = viewed(node).weight.meta["val"].shape
        if len(places) == 3 and places[0] > 1 and outputs <= inputs:
            changed += unroll(graph, node, _MOST_UNROLLED)
    finish(graph)
    return changed


def skip_padding_in_time(graph: fx.GraphModule) -> int:
    """Convolve each place of a kernel along T with the frames that it meets, where many are padding; return how many.

    ONNX Runtime multiplies the frames that are padding too: a third of all where a kernel of three meets two frames.
    """
    changed = 0
    for node in convolutions(graph, biased=True):
        if node.meta["val"].ndim == 5 and node.meta["val"].dtype in (torch.float32, torch.float64):
            changed += _skip_padding(graph, node)
    finish(graph)
    return changed


def sum_by_convolution(graph: fx.GraphModule) -> int:
    """Sum over a clip's channels, which gives relevance, by a convolution with ones; return how many.

    TensorRT computes a sum, and what leads to it, anew in all that reads it, for Sobel's kernel in 18 places: the plan
    of C3D's DTD was 5.5 MB larger.
    """
    changed = 0
    for node in list(graph.graph.find_nodes(op="call_function", target=aten.sum.dim_IntList)):
        source: Any = node.args[0]
        value = source.meta["val"]
        if not is_channel_sum(node) or value.shape[1] != _CHANNELS or node.meta["val"].dtype != value.dtype:
            continue
        n = value.ndim - 2
        with graph.graph.inserting_before(node):
            ones = add_constant(graph, torch.ones(1, _CHANNELS, *[1] * n, dtype=value.dtype))
            geometry = ([1] * n, [0] * n, [1] * n, False, [0] * n, 1)
            total = call(graph.graph, aten.convolution.default, source, ones, None, *geometry)
            made = call(graph.graph, aten.reshape.default, total, list(node.meta["val"].shape))
        node.replace_all_uses_with(made)
        changed += 1
    finish(graph)
    return changed


def _skip_padding(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Give each place of a kernel along T a convolution of its own, and add them up where their frames are."""
    view = viewed(node)
    stride, padding, dilation = view.for_each_axis()
    length, places = view.input.meta["val"].shape[2], view.weight.meta["val"].shape[2]
    total = node.meta["val"].shape[2]
    if stride[0] != 1:
        return False
    # What a place reads at t + shift counts at t.
    shifts = [place * dilation[0] - padding[0] for place in range(places)]
    ranges = [(max(0, -shift), min(total, length - shift)) for shift in shifts]
    met = [max(end - start, 0) for start, end in ranges]
    products = places * total
    if total not in met or _ONE_IN * (products - sum(met)) < products:
        return False
    # The one that meets all of its frames comes first, with the bias: the others are added to it.
    order = sorted((place for place in range(places) if met[place]), key=lambda place: -met[place])
    weight = view.constant_weight(graph)
    moved = view._replace(stride=stride, padding=[0, *padding[1:]], dilation=dilation)
    whole: Any = None
    with graph.graph.inserting_before(node):
        for place in order:
            start, end = ranges[place]
            shift = shifts[place]
            own = add_constant(graph, weight[:, :, place : place + 1].contiguous())
            frames = view.input
            if (start + shift, end + shift) != (0, length):
                frames = call(graph.graph, aten.slice.Tensor, view.input, 2, start + shift, end + shift)
            part = moved._replace(input=frames, weight=own, bias=view.bias if whole is None else None)
            term = call(graph.graph, aten.convolution.default, *part)
            term.meta["custom"] = node.meta.get("custom", {})
            if met[place] < total:
                term = call(graph.graph, aten.constant_pad_nd.default, term, [0, 0, 0, 0, start, total - end])
            whole = term if whole is None else call(graph.graph, aten.add.Tensor, whole, term)
    node.replace_all_uses_with(whole)
    return True
