"""Max pools going backward without indices: the first maximum of each window takes it all, as in torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch.nn import functional

Tensor = torch.Tensor


def max_pool(input: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor:
    """Return the maxima of the windows of [B,C,H,W] or [B,C,T,H,W]."""
    pool: Any = functional.max_pool2d if input.ndim == 4 else functional.max_pool3d
    pooled: Tensor = pool(input, kernel, stride, padding, dilation, ceil_mode)
    return pooled


def max_pool_backward(
    gradient: Tensor,
    input: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return the gradient of the input: each window's gradient at its first maximum, summed where windows overlap.

    The order is that of torch: T before H before W. In flat regions of real video ties are the rule; a mask by
    equality would hand out relevance twice.
    """
    windows = list(gradient.shape[2:])
    # Where windows do not meet the end of the input, or reach past it (a size rounded up), padding makes them fit.
    canvas = [
        max((length - 1) * s + d * (k - 1) + 1, size + p)
        for length, s, d, k, size, p in zip(windows, stride, dilation, kernel, input.shape[2:], padding, strict=True)
    ]
    padded = _pad(input, padding, canvas, float("-inf"))
    if list(kernel) == list(stride) and all(d == 1 for d in dilation):
        spread = _apart(gradient, padded, kernel)
    else:
        spread = _overlapping(gradient, padded, kernel, stride, dilation)
    for axis, (p, size) in enumerate(zip(padding, input.shape[2:], strict=True)):
        spread = _fit(spread, axis + 2, p, size)
    return spread


def _apart(gradient: Tensor, padded: Tensor, kernel: Sequence[int]) -> Tensor:
    """Windows side by side: see the input as windows, put the gradient where the (first) argmax is."""
    n, lead, windows = len(kernel), list(gradient.shape[:2]), list(gradient.shape[2:])
    for axis, (length, k) in enumerate(zip(windows, kernel, strict=True)):
        padded = padded.narrow(axis + 2, 0, length * k)
    # [B,C,T,kt,H,kh,W,kw] → [B,C,T,H,W,kt·kh·kw]; rank 8 is the most that TensorRT takes.
    split = [size for pair in zip(windows, kernel, strict=True) for size in pair]
    order = [0, 1, *(2 + 2 * axis for axis in range(n)), *(3 + 2 * axis for axis in range(n))]
    back = [0, 1, *(place for axis in range(n) for place in (2 + axis, 2 + n + axis))]
    area = 1
    for k in kernel:
        area *= k
    seen = padded.reshape(*lead, *split).permute(order).reshape(*lead, *windows, area)
    places = torch.arange(area, device=padded.device)
    first = seen.argmax(-1, keepdim=True) == places
    spread = torch.where(first, gradient.unsqueeze(-1), 0.0)
    spread = spread.reshape(*lead, *windows, *kernel).permute(back)
    return spread.reshape(*lead, *(length * k for length, k in zip(windows, kernel, strict=True)))


def _overlapping(
    gradient: Tensor, padded: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Windows that overlap: a pool along W, one along H and one along T, each going backward by itself.

    The first maximum of a box is the first of its T, in it the first of its H, in it the first of its W, so that ties
    go where they go without the split; and 27 places of a 3×3×3 window are 9.
    """
    axes = [axis for axis, k in enumerate(kernel) if k > 1 or stride[axis] > 1]
    values = [padded]
    for axis in reversed(axes[1:]):
        values.append(_pool_along(values[-1], axis, kernel[axis], stride[axis], dilation[axis]))
    for axis, value in zip(axes, reversed(values), strict=True):
        gradient = _along(gradient, value, axis + 2, kernel[axis], stride[axis], dilation[axis])
    return gradient


def _pool_along(values: Tensor, axis: int, kernel: int, stride: int, dilation: int) -> Tensor:
    """Return the maxima of windows along one axis of T, H, W."""
    settings = [[1] * (values.ndim - 2) for _ in range(3)]
    for setting, number in zip(settings, (kernel, stride, dilation), strict=True):
        setting[axis] = number
    return max_pool(values, settings[0], settings[1], 0, settings[2], False)


def _along(gradient: Tensor, values: Tensor, axis: int, kernel: int, stride: int, dilation: int) -> Tensor:
    """Hand the gradient of windows along one axis to the first maximum of each: a masked, shifted term per place.

    Places whose distance from the window's start leaves the same rest by the stride share a phase: they fall on the
    same sublattice of the input. The phases are summed apart and then interleaved.
    """
    windows, size = gradient.shape[axis], values.shape[axis]
    offsets = [place * dilation for place in range(kernel)]
    seen = [_every(values, axis, offset, windows, stride) for offset in offsets]
    largest = reduce(torch.maximum, seen)
    reach = -(-size // stride)
    phases: dict[int, Tensor] = {}
    taken: Tensor | None = None
    for offset, value in zip(offsets, seen, strict=True):
        first = value == largest
        if taken is not None:
            first = first & ~taken
        if offset != offsets[-1]:
            taken = first if taken is None else taken | first
        term = _place(torch.where(first, gradient, 0.0), axis, offset // stride, reach)
        phases[offset % stride] = phases[offset % stride] + term if offset % stride in phases else term
    if stride == 1:
        return phases[0]
    empty = torch.zeros_like(phases[0])
    spread = torch.stack([phases.get(phase, empty) for phase in range(stride)], axis + 1)
    spread = spread.reshape(*gradient.shape[:axis], reach * stride, *gradient.shape[axis + 1 :])
    return spread.narrow(axis, 0, size)


def _every(values: Tensor, axis: int, start: int, count: int, step: int) -> Tensor:
    """Return ``count`` places of an axis from ``start`` on, ``step`` apart."""
    index = [slice(None)] * values.ndim
    index[axis] = slice(start, start + (count - 1) * step + 1, step)
    return values[tuple(index)]


def _place(values: Tensor, axis: int, start: int, total: int) -> Tensor:
    """Put the values into an axis of ``total`` places from ``start`` on, zeros elsewhere."""
    pads = [0, 0] * (values.ndim - 1 - axis) + [start, total - start - values.shape[axis]]
    return functional.pad(values, pads) if any(pads) else values


def _pad(values: Tensor, before: Sequence[int], total: Sequence[int], value: float) -> Tensor:
    """Put the values into a larger array at ``before``; ``total`` is its size without what lies before the input.

    For the input of a pool ``total`` may exceed what is needed: windows ignore the rest.
    """
    sizes = [max(end, b + size) for end, b, size in zip(total, before, values.shape[2:], strict=True)]
    pads: list[int] = []
    for b, size, end in reversed(list(zip(before, values.shape[2:], sizes, strict=True))):
        pads += [b, end - b - size]
    return functional.pad(values, pads, value=value) if any(pads) else values


def _fit(values: Tensor, axis: int, start: int, size: int) -> Tensor:
    """Cut ``size`` places out of an axis from ``start`` on, with zeros where it ends before."""
    missing = start + size - values.shape[axis]
    if missing > 0:
        shape = list(values.shape)
        shape[axis] = missing
        values = torch.cat([values, values.new_zeros(shape)], axis)
    return values.narrow(axis, start, size) if (start, size) != (0, values.shape[axis]) else values
