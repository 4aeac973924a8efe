"""Max pools going backward without indices: the first maximum of each window takes it all, as in torch.

A graph holds each as one operation until it is done. Then it is written out twice: by ``max_pool_backward`` for torch
operation by operation, and by ``by_repeating`` for inductor and for ONNX. What is fast in one is slow in the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.nn import functional

from ..rewriting import aten, call, finish

Tensor = torch.Tensor


def max_pool(input: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor:
    """Return the maxima of the windows of [B,C,H,W] or [B,C,T,H,W]."""
    pool: Any = functional.max_pool2d if input.ndim == 4 else functional.max_pool3d
    pooled: Tensor = pool(input, kernel, stride, padding, dilation, ceil_mode)
    return pooled


def max_pool_backward(
    gradient: Tensor,
    input: Tensor,
    pooled: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return the gradient of the input of a pool that gave ``pooled``.

    Each window's gradient lies at its first maximum, summed where windows overlap.

    The order is that of torch: T before H before W. In flat regions of real video ties are the rule; a mask by
    equality would hand out relevance twice.

    A pool along W, one along H and one along T, each going backward by itself: the first maximum of a box is the first
    of its T, in it the first of its H, in it the first of its W, so that ties go where they go without the split; and
    27 places of a 3×3×3 window are 9.
    """
    axes = [
        _Axis(axis + 2, gradient.shape[axis + 2], kernel[axis], stride[axis], dilation[axis])
        for axis in range(len(kernel))
        if kernel[axis] > 1 or stride[axis] > 1
    ]
    values, seen = _whole_windows(input, gradient, kernel, stride, padding, dilation), []
    for axis in reversed(axes):
        places = axis.places(values)
        largest = reduce(torch.maximum, places)
        seen.append((places, largest, values.shape[axis.number]))
        values = axis.closed(largest)
    for axis, (places, largest, size) in zip(axes, reversed(seen), strict=True):
        gradient = axis.spread(_shares(axis.opened(gradient), places, largest), size)
    return _cut_to(gradient, input, padding)


def by_repeating(
    gradient: Tensor,
    input: Tensor,
    pooled: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return what max_pool_backward does, by arrays of the input's size: the maxima, repeated, are looked for in it.

    Places that hold it rank above those that do not, and among equal ones the first ranks highest: a second pool finds
    one winner in each window, also where a runtime rounds a pool's input otherwise than its output. Where windows
    overlap, or are not two high and two wide, it is max_pool_backward: to repeat by two in H and W is what ONNX
    runtimes are fast at.
    """
    if not in_pairs(kernel, stride, dilation):
        return max_pool_backward(gradient, input, pooled, kernel, stride, padding, dilation)
    values = _whole_windows(input, gradient, kernel, stride, padding, dilation)
    return _cut_to(spread(gradient, winners(values, pooled, kernel), kernel), input, padding)


def winners(values: Tensor, pooled: Tensor, kernel: Sequence[int]) -> Tensor:
    """Return 1 at the first maximum of every window and 0 elsewhere, for ``by_repeating``'s pools."""
    # A power of two, so that every rank is exact.
    step = 2.0 ** -(math.prod(kernel)).bit_length()
    height, width = (_places(values, axis, 2) * step for axis in (-2, -1))
    rank = (1 - 2 * height - width) + (values == _repeated(pooled, kernel))
    if len(kernel) == 3 and kernel[0] > 1:
        # Apart from the plane, so that no constant has the size of T, H and W.
        rank = rank - _places(values, 2, kernel[0]) * (4 * step)
    return rank == _repeated(max_pool(rank, kernel, kernel, 0, 1, False), kernel)


def spread(gradient: Tensor, winners: Tensor, kernel: Sequence[int]) -> Tensor:
    """Return each window's gradient at its winner, and zeros."""
    return _repeated(gradient, kernel) * winners


def in_pairs(kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Say whether windows lie side by side, two high and two wide."""
    return list(kernel) == list(stride) and list(kernel[-2:]) == [2, 2] and all(d == 1 for d in dilation)


def _places(values: Tensor, axis: int, kernel: int) -> Tensor:
    """Return the place of every index along an axis in its window, from 0 to kernel − 1; it broadcasts."""
    shape = [1] * values.ndim
    shape[axis] = -1
    return torch.arange(values.shape[axis], dtype=torch.float32, device=values.device).remainder(kernel).reshape(shape)


def _repeated(values: Tensor, kernel: Sequence[int]) -> Tensor:
    """Repeat every value over its window; H and W by two, as images, which is where runtimes have kernels for it."""
    if len(kernel) == 3 and kernel[0] > 1:
        shape = list(values.shape)
        values = values.unsqueeze(3).expand(*shape[:3], kernel[0], *shape[3:]).flatten(2, 3)
    height, width = values.shape[-2:]
    images = values.reshape(len(values), -1, height, width)
    images = functional.interpolate(images, (2 * height, 2 * width), mode="nearest")
    return images.reshape(*values.shape[:-2], 2 * height, 2 * width)


def _whole_windows(
    input: Tensor,
    gradient: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return the input with all its windows inside: padded, and of an axis whose windows lie side by side no rest.

    Where windows do not meet the end of the input, or reach past it (a size rounded up), padding makes them fit.
    """
    sizes, windows = input.shape[2:], gradient.shape[2:]
    settings = list(zip(windows, kernel, stride, padding, dilation, strict=True))
    reach = [max((length - 1) * s + d * (k - 1) + 1, size + p)
             for size, (length, k, s, p, d) in zip(sizes, settings, strict=True)]  # fmt: skip
    values = _pad(input, padding, reach, float("-inf"))
    for axis, (length, k, s, _, d) in enumerate(settings):
        if k == s and d == 1:
            values = values.narrow(axis + 2, 0, length * k)
    return values


def _cut_to(spread: Tensor, input: Tensor, padding: Sequence[int]) -> Tensor:
    """Return what of the whole windows is the input's, and zeros where they leave a rest of it."""
    for axis, (p, size) in enumerate(zip(padding, input.shape[2:], strict=True)):
        spread = _fit(spread, axis + 2, p, size)
    return spread


def _shares(gradient: Tensor, places: Sequence[Tensor], largest: Tensor) -> list[Tensor]:
    """Return what each place of the windows takes: all that is left, where it holds the maximum.

    What is left is all or nothing, so the difference is exact (of finite values), and the last place needs no look: one
    of them has it.
    Products, since some runtimes choose between two arrays ten times as slowly as they multiply.
    """
    shares = []
    for place in places[:-1]:
        shares.append(gradient * (place == largest))
        gradient = gradient - shares[-1]
    return [*shares, gradient]


class _Axis(NamedTuple):
    """A pool along one axis: its number among B, C, T, H, W, the windows along it, and what makes them.

    The places of the windows are arrays: the first of every window, the second of every window, and so on.
    """

    number: int
    windows: int
    kernel: int
    stride: int
    dilation: int

    @property
    def apart(self) -> bool:
        """Whether windows lie side by side, so that each voxel is in one of them; the axis is then opened into two."""
        return self.kernel == self.stride and self.dilation == 1

    def opened(self, values: Tensor) -> Tensor:
        """Give an array of windows the axis along which their places lie."""
        return values.unsqueeze(self.number + 1) if self.apart else values

    def closed(self, values: Tensor) -> Tensor:
        """Take it away again."""
        return values.squeeze(self.number + 1) if self.apart else values

    def places(self, values: Tensor) -> list[Tensor]:
        """Return the places."""
        if not self.apart:
            return [
                _every(values, self.number, place * self.dilation, self.windows, self.stride)
                for place in range(self.kernel)
            ]
        shape = [*values.shape[: self.number], self.windows, self.kernel, *values.shape[self.number + 1 :]]
        return list(torch.split(values.reshape(shape), 1, self.number + 1))

    def spread(self, shares: list[Tensor], size: int) -> Tensor:
        """Put the places' shares where they belong on an axis of ``size`` places or, side by side, of all windows.

        Where windows overlap, places whose distance from the window's start leaves the same rest by the stride share a
        phase: they fall on the same sublattice. The phases are summed apart and then interleaved.
        """
        if self.apart:
            return torch.cat(shares, self.number + 1).flatten(self.number, self.number + 1)
        reach = -(-size // self.stride)
        phases: dict[int, Tensor] = {}
        for place, share in enumerate(shares):
            start, phase = divmod(place * self.dilation, self.stride)
            term = _place(share, self.number, start, reach)
            phases[phase] = phases[phase] + term if phase in phases else term
        if self.stride == 1:
            return phases[0]
        empty = torch.zeros_like(phases[0])
        spread = torch.stack([phases.get(phase, empty) for phase in range(self.stride)], self.number + 1)
        return spread.flatten(self.number, self.number + 1).narrow(self.number, 0, size)


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


@torch.library.custom_op("selrel::max_pool_backward", mutates_args=())
def first_maxima(
    gradient: Tensor,
    input: Tensor,
    pooled: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The one operation: ``max_pool_backward``."""
    return max_pool_backward(gradient, input, pooled, kernel, stride, padding, dilation).clone()


@first_maxima.register_fake
def _(gradient: Tensor, input: Tensor, *_: Any) -> Tensor:
    return gradient.new_empty(input.shape)


FIRST_MAXIMA = torch.ops.selrel.max_pool_backward.default
_MAX_POOLS = (aten.max_pool2d.default, aten.max_pool3d.default)


def rectify_after_pools(graph: fx.GraphModule) -> int:
    """Rectify after a max pool what is rectified before it: far fewer values; return how many pools.

    The maximum is the same. Its place is not where a whole window is negative, so it holds where such windows get no
    relevance: what goes back through the pool is a product with what the pool gave, zero there.
    """
    changed = 0
    for node in list(graph.graph.find_nodes(op="call_function", target=aten.relu.default)):
        pools = [user for user in node.users if user.target in _MAX_POOLS]
        backward = [
            user for user in node.users if user.target == FIRST_MAXIMA and node not in (user.args[0], user.args[2])
        ]
        if not pools or len(pools) + len(backward) < len(node.users):
            continue
        if not all(user.args[2] in pools and _vanishes_with(user.args[2], user.args[0]) for user in backward):
            continue
        for pool in pools:
            with graph.graph.inserting_before(pool):
                whole = call(graph.graph, pool.target, node.args[0], *pool.args[1:])
                rectified = call(graph.graph, aten.relu.default, whole)
            whole.meta["custom"] = rectified.meta["custom"] = pool.meta.get("custom", {})
            for user in backward:
                if user.args[2] is pool:
                    user.args = (user.args[0], node.args[0], whole, *user.args[3:])
            pool.replace_all_uses_with(rectified)
            changed += 1
    finish(graph)
    return changed


def _vanishes_with(factor: Any, value: Any) -> bool:
    """Say whether a value is zero wherever ``factor`` is, being a product with it."""
    if value is factor:
        return True
    if not isinstance(value, fx.Node) or value.meta["val"].shape != factor.meta["val"].shape:
        return False
    if value.target == aten.mul.Tensor:
        return any(_vanishes_with(factor, source) for source in value.args)
    return value.target == aten.div.Tensor and _vanishes_with(factor, value.args[0])
