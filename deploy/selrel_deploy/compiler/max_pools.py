"""Max pools going backward without indices: the first maximum of each window takes it all, as in torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
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
    """Windows that overlap: one masked term per place in the window, shifted to where that place lies in the input.

    Places whose distance from the window's start leaves the same rest by the stride share a phase: they fall on the
    same sublattice of the input. The phases are summed apart and then interleaved.
    """
    windows = list(gradient.shape[2:])
    places = list(itertools.product(*(range(k) for k in kernel)))
    offsets = [tuple(k * d for k, d in zip(place, dilation, strict=True)) for place in places]
    values = [_strided(padded, offset, windows, stride) for offset in offsets]
    largest = values[0]
    for value in values[1:]:
        largest = torch.maximum(largest, value)
    reach = [-(-size // s) for size, s in zip(padded.shape[2:], stride, strict=True)]
    phases: dict[tuple[int, ...], Tensor] = {}
    taken: Tensor | None = None
    for offset, value in zip(offsets, values, strict=True):
        first = value == largest
        if taken is not None:
            first = first & ~taken
        taken = first if taken is None else taken | first
        term = torch.where(first, gradient, 0.0)
        phase = tuple(o % s for o, s in zip(offset, stride, strict=True))
        shifted = _pad(term, [o // s for o, s in zip(offset, stride, strict=True)], reach, 0.0)
        phases[phase] = phases[phase] + shifted if phase in phases else shifted
    if all(s == 1 for s in stride):
        return phases[(0,) * len(stride)]
    empty = torch.zeros_like(next(iter(phases.values())))
    every = itertools.product(*(range(s) for s in stride))
    stacked = torch.stack([phases.get(phase, empty) for phase in every], 2)
    n, lead = len(stride), list(gradient.shape[:2])
    # [B,C,phase,T,H,W] → [B,C,T,st,H,sh,W,sw]
    order = [0, 1, *(place for axis in range(n) for place in (2 + n + axis, 2 + axis))]
    spread = stacked.reshape(*lead, *stride, *reach).permute(order)
    return spread.reshape(*lead, *(length * s for length, s in zip(reach, stride, strict=True)))


def _strided(values: Tensor, start: Sequence[int], length: Sequence[int], stride: Sequence[int]) -> Tensor:
    index = [slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(start, length, stride, strict=True)]
    return values[(slice(None), slice(None), *index)]


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
