"""Average pools and resizing as one small matrix per axis: forward is a product with it, backward with its transpose.

The matrices are made of ``arange`` and arithmetic, so that they can be traced without values and folded afterwards.
All are [size of the input, size of the output], in the dtype of ``like``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Tensor = torch.Tensor


def apply_along(values: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply the last axes of [B,C,…] by one matrix each: [.., n, ..] with [n, m] → [.., m, ..]."""
    first = values.ndim - len(matrices)
    for axis, matrix in enumerate(matrices):
        order = list(range(values.ndim))
        order[first + axis], order[-1] = order[-1], order[first + axis]
        moved = values.permute(order)
        product = moved.reshape(-1, matrix.shape[0]) @ matrix
        values = product.reshape(*moved.shape[:-1], matrix.shape[1]).permute(order)
    return values


def _positions(size: int, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of the input as a column and the numbers of the outputs as a row, float64."""
    column = torch.arange(size, dtype=torch.float64, device=like.device)[:, None]
    return column, torch.arange(length, dtype=torch.float64, device=like.device)[None]


def pooling(
    size: int,
    length: int,
    kernel: int,
    stride: int,
    padding: int,
    count_include_pad: bool,
    divide: bool,
    like: Tensor,
) -> Tensor:
    """Return the matrix of an average pool, or with ``divide=False`` that of the sum over its windows."""
    place, output = _positions(size, length, like)
    start = output * stride - padding
    # A window may reach past the padding where the output size was rounded up; that part counts for nobody.
    stop = (start + kernel).clamp(max=size + padding)
    inside = ((place >= start) & (place < stop)).to(torch.float64)
    if divide:
        counted = stop - start if count_include_pad else stop.clamp(max=size) - start.clamp(min=0)
        inside = inside / counted
    return inside.to(like.dtype)


def adaptive_average(size: int, length: int, like: Tensor) -> Tensor:
    """Return the matrix of an adaptive average pool: window o is ⌊o·n÷m⌋ … ⌈(o+1)·n÷m⌉."""
    place, output = _positions(size, length, like)
    start, stop = torch.floor(output * size / length), torch.ceil((output + 1) * size / length)
    return (((place >= start) & (place < stop)).to(torch.float64) / (stop - start)).to(like.dtype)


def interpolation(size: int, length: int, align_corners: bool, scale: float | None, like: Tensor) -> Tensor:
    """Return the matrix of linear interpolation: a hat, one voxel wide to each side, around each output's position."""
    place, output = _positions(size, length, like)
    if align_corners:
        position = output * ((size - 1) / max(length - 1, 1))
    else:
        position = (output + 0.5) * (1 / scale if scale else size / length) - 0.5
    return (1 - (place - position.clamp(0, size - 1)).abs()).clamp(min=0).to(like.dtype)


def nearest(size: int, length: int, scale: float | None, like: Tensor) -> Tensor:
    """Return the matrix of nearest-neighbour resizing: output o is input ⌊o·n÷m⌋."""
    place, output = _positions(size, length, like)
    position = torch.floor(output * (1 / scale if scale else size / length)).clamp(max=size - 1)
    return (place == position).to(like.dtype)
