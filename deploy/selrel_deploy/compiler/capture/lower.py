"""Express every operation by those that runtimes take: convolutions and pools going backward, resizing, batch norm.

Each function here computes what one ATen operation computes, from plain operations; ``lower`` retraces a graph with
them. No indices of a max pool, no scatter, no rank above 8.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.nn import functional

from selrel_zennit.errors import InputError

from ..passes.max_pools import FIRST_MAXIMA, max_pool
from ..rewriting import aten, finish, module_of, retrace
from .separable import adaptive_average, apply_along, interpolation, nearest, pooling

Tensor = torch.Tensor


def lower(graph: fx.GraphModule) -> fx.GraphModule:
    """Return the graph in plain operations, none of them in place.

    Raises InputError, naming operation and module, for what has no rule.
    """
    sources: dict[Any, fx.Node] = {}
    for node in graph.graph.nodes:
        sources.setdefault(node.target, node)
    table = {**core_aten_decompositions(), **get_decompositions(MORE_DECOMPOSED), **RULES}
    try:
        lowered = retrace(graph, {op: rule for op, rule in table.items() if op not in KEPT})
    except InputError as error:
        # torch adds to it, in lines of its own, what it was executing.
        raise InputError(str(error).partition("\n")[0]) from None
    for node in list(lowered.graph.nodes):
        _straighten(lowered.graph, node)
    finish(lowered)
    for node in lowered.graph.nodes:
        if node.op == "call_function" and _name(node.target) not in PLAIN:
            path = module_of(sources.get(node.target, node))
            raise InputError(
                f"{node.target} (in or after module {path or 'unknown'}) cannot be put into a static graph: "
                "use another layer there, or another method"
            )
    return lowered


def _straighten(graph: fx.Graph, node: fx.Node) -> None:
    """Put what tracing wrote in torch's terms into those of a static graph."""
    if node.target in _SAME_VALUES:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    elif node.target in (aten.view.default, aten._unsafe_view.default):
        # Without the clones, what comes in may lie in memory in another order; only reshape takes that.
        node.target = aten.reshape.default
    elif node.target in _POOLS_WITHOUT_INDICES:
        for user in [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]:
            with graph.inserting_before(node):
                pool = graph.call_function(_POOLS_WITHOUT_INDICES[node.target], node.args, node.kwargs)
            pool.meta = dict(user.meta)
            user.replace_all_uses_with(pool)


def _name(target: Any) -> str:
    return str(getattr(target, "overloadpacket", target)).removeprefix("aten.")


def _three(value: Sequence[int] | int, dimensions: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values


# --- convolution ---


def convolution_backward(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, None, None]:
    """Return the gradient of the input as a convolution of the gradient of the output."""
    if output_mask[1] or output_mask[2]:
        raise InputError("the attributor asks for gradients of weights, which a graph of explanations does not give")
    if not output_mask[0]:
        return None, None, None
    n = input.ndim - 2
    stride, padding, dilation = (_three(value, n) for value in (stride, padding, dilation))
    if transposed:
        return aten.convolution(gradient, weight, None, stride, padding, dilation, False, [0] * n, groups), None, None
    kernel = list(weight.shape[2:])
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(step != 1 for step in stride):
        rest = [
            size - ((length - 1) * s - 2 * p + r + 1)
            for size, length, s, p, r in zip(input.shape[2:], gradient.shape[2:], stride, padding, reach, strict=True)
        ]
        return aten.convolution(gradient, weight, None, stride, padding, dilation, True, rest, groups), None, None
    outputs, inputs = weight.shape[:2]
    flipped = weight.reshape(groups, outputs // groups, inputs, *kernel).transpose(1, 2)
    flipped = flipped.reshape(groups * inputs, outputs // groups, *kernel).flip(list(range(2, n + 2)))
    need = [r - p for r, p in zip(reach, padding, strict=True)]
    full = aten.convolution(
        gradient, flipped, None, [1] * n, [max(p, 0) for p in need], dilation, False, [0] * n, groups
    )
    for axis, p in enumerate(need):
        if p < 0:  # more padding than the kernel reaches: the outermost outputs saw padding alone
            full = full.narrow(axis + 2, -p, input.shape[axis + 2])
    return full, None, None


# --- pools and resizing ---


def adaptive_max_pool(input: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the maxima, as those of an ordinary max pool, and no true indices; the input must divide evenly."""
    kernel = _even_windows(input, output_size)
    pooled = max_pool(input, kernel, kernel, 0, 1, False)
    return pooled, torch.zeros(pooled.shape, dtype=torch.int64, device=input.device)


def adaptive_max_pool_backward(gradient: Tensor, input: Tensor, indices: Any) -> Tensor:
    """Return the gradient of the input of an adaptive max pool."""
    kernel = _even_windows(input, gradient.shape[2:])
    pooled, _ = adaptive_max_pool(input, gradient.shape[2:])
    spread: Tensor = FIRST_MAXIMA(gradient, input, pooled, kernel, kernel, [0] * len(kernel), [1] * len(kernel))
    return spread


def _even_windows(input: Tensor, output_size: Sequence[int]) -> list[int]:
    if any(size % length for size, length in zip(input.shape[2:], output_size, strict=True)):
        raise InputError(
            f"an adaptive max pool from {tuple(input.shape[2:])} to {tuple(output_size)} has windows of different "
            "sizes, which a static graph cannot hold: use a size that divides evenly, or an ordinary max pool"
        )
    return [size // length for size, length in zip(input.shape[2:], output_size, strict=True)]


def _max_pool_backward(
    gradient: Tensor,
    input: Tensor,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    indices: Any,
) -> Tensor:
    # With the arguments as they are: the forward pass has the same pool already.
    pooled = max_pool(input, kernel, stride, padding, dilation, ceil_mode)
    n = gradient.ndim - 2
    kernel, stride, padding, dilation = (_three(value, n) for value in (kernel, stride or kernel, padding, dilation))
    spread: Tensor = FIRST_MAXIMA(gradient, input, pooled, kernel, stride, padding, dilation)
    return spread


def _average_pool_backward(
    gradient: Tensor,
    input: Tensor,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    n = gradient.ndim - 2
    settings = [_three(value, n) for value in (kernel, stride or kernel, padding)]
    maps = [
        pooling(size, length, k, s, p, count_include_pad, divisor_override is None, gradient).T
        for size, length, k, s, p in zip(input.shape[2:], gradient.shape[2:], *settings, strict=True)
    ]
    return apply_along(gradient / divisor_override if divisor_override else gradient, maps)


def adaptive_average_pool(input: Tensor, output_size: Sequence[int]) -> Tensor:
    """Return the means of [B,C,H,W] or [B,C,T,H,W] over windows that divide it into ``output_size``."""
    sizes = zip(input.shape[2:], output_size, strict=True)
    return apply_along(input, [adaptive_average(size, length, input) for size, length in sizes])


def _adaptive_average_backward(gradient: Tensor, input: Tensor) -> Tensor:
    sizes = zip(input.shape[2:], gradient.shape[2:], strict=True)
    return apply_along(gradient, [adaptive_average(size, length, gradient).T for size, length in sizes])


def _resize(input: Tensor, output_size: Sequence[int], align_corners: bool, *scales: float | None) -> Tensor:
    sizes = zip(input.shape[2:], output_size, _scales(scales, input), strict=True)
    return apply_along(input, [interpolation(size, out, align_corners, s, input) for size, out, s in sizes])


def _resize_backward(
    gradient: Tensor, output_size: Any, input_size: Sequence[int], align_corners: bool, *scales: float | None
) -> Tensor:
    sizes = zip(input_size[2:], gradient.shape[2:], _scales(scales, gradient), strict=True)
    return apply_along(gradient, [interpolation(size, out, align_corners, s, gradient).T for size, out, s in sizes])


def _repeat(input: Tensor, output_size: Sequence[int], *scales: float | None) -> Tensor:
    sizes = zip(input.shape[2:], output_size, _scales(scales, input), strict=True)
    return apply_along(input, [nearest(size, out, s, input) for size, out, s in sizes])


def _repeat_backward(gradient: Tensor, output_size: Any, input_size: Sequence[int], *scales: float | None) -> Tensor:
    sizes = zip(input_size[2:], gradient.shape[2:], _scales(scales, gradient), strict=True)
    return apply_along(gradient, [nearest(size, out, s, gradient).T for size, out, s in sizes])


def _scales(scales: Sequence[float | None], input: Tensor) -> list[float | None]:
    return list(scales) if scales else [None] * (input.ndim - 2)


def replication_pad(input: Tensor, padding: Sequence[int]) -> Tensor:
    """Return the input with its outermost values repeated; ``padding`` as torch has it, last axis first."""
    for axis in range(len(padding) // 2):
        dimension = input.ndim - 1 - axis
        before, after = padding[2 * axis : 2 * axis + 2]
        first, last = input.narrow(dimension, 0, 1), input.narrow(dimension, input.shape[dimension] - 1, 1)
        input = torch.cat([*[first] * before, input, *[last] * after], dimension)
    return input


def slice_backward(gradient: Tensor, input_sizes: Sequence[int], axis: int, start: int, end: int, step: int) -> Tensor:
    """Return the gradient of what ``input[start:end:step]`` was cut from: zeros around it and between."""
    size = input_sizes[axis]
    start = min(max(start + size if start < 0 else start, 0), size)
    if step > 1:
        before, length = list(gradient.shape[:axis]), gradient.shape[axis]
        zeros = gradient.new_zeros([*before, length, step - 1, *gradient.shape[axis + 1 :]])
        spaced = torch.cat([gradient.unsqueeze(axis + 1), zeros], axis + 1)
        gradient = spaced.reshape(*before, length * step, *gradient.shape[axis + 1 :])
        gradient = gradient.narrow(axis, 0, (length - 1) * step + 1)
    pads = [0, 0] * (gradient.ndim - 1 - axis) + [start, size - start - gradient.shape[axis]]
    return functional.pad(gradient, pads)


def select_backward(gradient: Tensor, input_sizes: Sequence[int], axis: int, index: int) -> Tensor:
    """Return the gradient of what ``input.select(axis, index)`` was cut from."""
    axis, index = axis % len(input_sizes), index % input_sizes[axis]
    return slice_backward(gradient.unsqueeze(axis), input_sizes, axis, index, index + 1, 1)


# --- batch norm ---

_OWN_STATISTICS = (
    "instance norm, or a batch norm without running statistics, computes its mean and variance of the clip itself, for "
    "which graphs have no rule: use a batch norm with track_running_stats=True there, or explain the network in torch"
)


def _batch_norm(
    input: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float
) -> tuple[Tensor, None, None]:
    if training or mean is None:
        raise InputError(_OWN_STATISTICS)
    scale = _batch_norm_scale(weight, variance, eps)
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = [1, -1] + [1] * (input.ndim - 2)
    return input * scale.reshape(shape) + shift.reshape(shape), None, None


def _batch_norm_backward(
    gradient: Tensor,
    input: Tensor,
    weight: Any,
    mean: Any,
    variance: Any,
    saved_mean: Any,
    saved_scale: Any,
    training: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, None, None]:
    shape = [1, -1] + [1] * (gradient.ndim - 2)
    return gradient * _batch_norm_scale(weight, variance, eps).reshape(shape), None, None


def _batch_norm_scale(weight: Any, variance: Tensor, eps: float) -> Tensor:
    scale = 1 / torch.sqrt(variance + eps)
    return scale if weight is None else weight * scale


def _inference_batch_norm(
    input: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float, eps: float
) -> tuple[Tensor, None, None]:
    return _batch_norm(input, weight, bias, mean, variance, False, momentum, eps)


def _var_mean(
    input: Tensor, dim: Sequence[int] | None = None, *, correction: float = 1, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    axes = list(range(input.ndim)) if dim is None else list(dim)
    mean = input.mean(axes, keepdim=True)
    count = math.prod(input.shape[axis] for axis in axes)
    variance = (input - mean).square().sum(axes, keepdim=keepdim) / (count - correction)
    return variance, mean if keepdim else input.mean(axes)


def _full_like(value: Tensor, fill: float, **kwargs: Any) -> Tensor:
    return torch.full(value.shape, fill, dtype=kwargs.get("dtype") or value.dtype, device=value.device)


RULES: dict[Any, Callable[..., Any]] = {
    aten.convolution_backward.default: convolution_backward,
    aten.native_batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _inference_batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.slice_backward.default: slice_backward,
    aten.select_backward.default: select_backward,
    aten.replication_pad1d.default: replication_pad,
    aten.replication_pad2d.default: replication_pad,
    aten.replication_pad3d.default: replication_pad,
    aten.full_like.default: _full_like,
    aten.var_mean.correction: _var_mean,
    aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
    aten.max_pool3d_with_indices_backward.default: _max_pool_backward,
    aten.adaptive_max_pool2d.default: adaptive_max_pool,
    aten.adaptive_max_pool3d.default: adaptive_max_pool,
    aten.adaptive_max_pool2d_backward.default: adaptive_max_pool_backward,
    aten.adaptive_max_pool3d_backward.default: adaptive_max_pool_backward,
    aten.avg_pool2d_backward.default: _average_pool_backward,
    aten.avg_pool3d_backward.default: _average_pool_backward,
    aten._adaptive_avg_pool2d.default: adaptive_average_pool,
    aten._adaptive_avg_pool3d.default: adaptive_average_pool,
    aten._adaptive_avg_pool2d_backward.default: _adaptive_average_backward,
    aten._adaptive_avg_pool3d_backward.default: _adaptive_average_backward,
    aten.upsample_bilinear2d.default: _resize,
    aten.upsample_trilinear3d.default: _resize,
    aten.upsample_bilinear2d_backward.default: _resize_backward,
    aten.upsample_trilinear3d_backward.default: _resize_backward,
    aten.upsample_nearest2d.default: _repeat,
    aten.upsample_nearest3d.default: _repeat,
    aten.upsample_nearest2d_backward.default: _repeat_backward,
    aten.upsample_nearest3d_backward.default: _repeat_backward,
}

_SAME_VALUES = frozenset({aten.alias.default, aten.clone.default, aten.detach.default, aten.lift_fresh_copy.default})

_POOLS_WITHOUT_INDICES: dict[Any, Any] = {
    aten.max_pool2d_with_indices.default: aten.max_pool2d.default,
    aten.max_pool3d_with_indices.default: aten.max_pool3d.default,
}

# Plain already, whatever torch's table says.
KEPT = frozenset({aten.t.default, aten.addmm.default, aten.sign.default})

# Core operations of torch that are several of ours.
MORE_DECOMPOSED = (aten.native_layer_norm,)

# Names, not overloads: what differs between overloads is the kind of argument.
PLAIN = frozenset(
    """_softmax _to_copy abs add addmm amax amin any arange argmax argmin avg_pool2d avg_pool3d bitwise_and
    bitwise_not bitwise_or bmm cat ceil clamp constant_pad_nd convolution cos div eq erf exp expand flip floor full ge
    gelu gt index_select le leaky_relu linear log log1p logical_and logical_not logical_or lt max_pool2d max_pool3d
    maximum mean minimum mm mul ne neg permute pow reciprocal relu remainder reshape round rsqrt scalar_tensor select
    sigmoid sign sin slice split_with_sizes sqrt squeeze sub sum t tanh transpose unsqueeze where
    """.split()  # noqa: SIM905  (a list of 80 lines says no more)
) | {"<built-in function getitem>", "selrel.max_pool_backward"}
