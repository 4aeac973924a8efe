"""How this machine computes a graph: quantised convolutions by torch's int8 kernels, fp16 where there is no fp16."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils.weak import WeakIdKeyDictionary

from selrel_zennit.errors import InputError

from ..rewriting import Convolution, aten, copied, finish
from .precision import PRODUCTS, quantized

# oneDNN's kernels have the channels last.
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}

# weight → the same, packed for the kernel that it is for
_PACKED: Any = WeakIdKeyDictionary()


@torch.library.custom_op("selrel::int8_convolution", mutates_args=(), tags=(torch.Tag.needs_fixed_stride_order,))
def int8_convolution(
    steps: torch.Tensor,
    scale: float,
    weight: torch.Tensor,
    scales: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Convolve uint8 ``steps`` [B,C,…] of size ``scale`` with int8 ``weight`` [O,C/groups,…], steps of ``scales`` [O].

    The result is float32 or bfloat16. The weight is packed at the first call, and must not change afterwards.
    """
    onednn: Any = torch.ops.onednn
    geometry = (stride, padding, dilation, groups)
    if weight not in _PACKED:
        zeros = torch.zeros(len(scales), dtype=torch.int32)
        _PACKED[weight] = onednn.qconv_prepack(weight, scales, scale, 0, *geometry, list(steps.shape)), zeros
    packed, zeros = _PACKED[weight]
    result: torch.Tensor = onednn.qconv_pointwise(
        steps, scale, 0, packed, scales, zeros, None, *geometry, 1.0, 0, dtype, "none", [], ""
    )
    return result


@int8_convolution.register_fake
def _(
    steps: torch.Tensor,
    scale: float,
    weight: torch.Tensor,
    scales: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip(steps.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True)
    ]
    shape = [steps.shape[0], weight.shape[0], *sizes]
    return steps.new_empty(shape, dtype=dtype).to(memory_format=_LAYOUTS[steps.ndim])


def with_kernels(graph: fx.GraphModule) -> fx.GraphModule:
    """Return the graph as this machine's torch computes it best, sharing constants with the given one.

    Quantised convolutions take oneDNN's uint8 × int8 kernels; without, they are computed in float32, the same numbers.
    A processor without fp16 arithmetic multiplies fp16 values in float32 and rounds the result: torch's own way takes
    minutes for a clip. Raises InputError where torch was built without oneDNN.
    """
    dtypes = {node.meta.get("dtype") for node in graph.graph.nodes}
    widen = torch.float16 in dtypes and not torch.ops.mkldnn._is_mkldnn_fp16_supported()
    if torch.uint8 not in dtypes and not widen:
        return graph
    if not torch._C._has_mkldnn:
        raise InputError("this torch has no int8 convolutions (it was built without oneDNN): use another precision")
    made = copied(graph)
    for node in list(made.graph.nodes):
        view = Convolution.of(node)
        if view is not None and _is(view.weight, quantized.dequantize_per_channel.default):
            _fuse(made.graph, node)
        elif widen and node.target in PRODUCTS and node.meta["dtype"] == torch.float16:
            _widen(made.graph, node)
    finish(made)
    return made


def _is(value: Any, target: Any) -> bool:
    return isinstance(value, fx.Node) and value.target == target


def _widen(graph: fx.Graph, node: fx.Node) -> None:
    def wide(value: fx.Node) -> fx.Node:
        return graph.call_function(aten._to_copy.default, (value,), {"dtype": torch.float32})

    with graph.inserting_before(node):
        product = graph.call_function(node.target, fx.node.map_arg(node.args, wide))  # type: ignore[arg-type]
        rounded = graph.call_function(aten._to_copy.default, (product,), {"dtype": torch.float16})
    rounded.meta = dict(node.meta)
    node.replace_all_uses_with(rounded)


def _fuse(graph: fx.Graph, node: fx.Node) -> None:
    args: Any = node.args
    value, kernel, _, stride, padding, dilation, _, _, groups = args
    steps, scale = value.args[:2]
    weight, scales = kernel.args[:2]
    last, dtype = node, torch.float32
    users = list(node.users)
    if [user.kwargs.get("dtype") for user in users] == [torch.bfloat16]:
        last, dtype = users[0], torch.bfloat16
    with graph.inserting_before(node):
        layout = _LAYOUTS[len(steps.meta["shape"])]
        arranged = graph.call_function(aten.clone.default, (steps,), {"memory_format": layout})
        product = graph.call_function(
            torch.ops.selrel.int8_convolution.default,
            (arranged, scale, weight, scales, stride, padding, dilation, groups, dtype),
        )
    product.meta = dict(last.meta)
    last.replace_all_uses_with(product)
