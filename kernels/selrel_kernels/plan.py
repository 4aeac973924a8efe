"""How the kernels of ``csrc/select_motion.cu`` are launched: tiles, blocks, shared memory, arguments. NumPy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

# Flags of the source.
RISING, FALLING, SIGMA_OF_ABS, ZERO_BORDER, SHIFT, CALIBRATED = (1 << bit for bit in range(6))

SUFFIXES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
MAX_THREADS = 512
CLUSTER_ARCH = 90
_SLOTS = 8
_PART_BYTES = 16
_MAX_GROUPS = 512  # every block of the second launch merges so many partials
_MAX_CLUSTER = 8  # what every device with clusters can do
_TWO_BLOCKS = 76 * 1024  # shared memory of a block, so that a multiprocessor with 160 KiB holds two
_LARGEST_TILE = 2**16 - 1  # the source's sums hold so many voxels
_WARP = 32


class KernelUnavailable(RuntimeError):
    """The kernel cannot run here. The message says why, and what to do."""


class Limits(NamedTuple):
    """What a launch depends on: a device's multiprocessors, shared memory of one block in bytes, and 10·major+minor."""

    multiprocessors: int
    shared_memory: int
    arch: int


@dataclass(frozen=True)
class Plan:
    """One selection: how its map is cut, and what its launches need.

    tile            time steps, rows and columns of a tile
    groups          blocks that share a clip; in a cluster launch, its blocks
    grid            blocks of each launch
    threads         of a block, a power of two
    shared_bytes    dynamic shared memory of a block
    workspace_bytes device memory that the first launch leaves its partials in; 0 in a cluster launch
    in_cluster      one launch, with a cluster of blocks for each clip
    """

    tile: tuple[int, int, int]
    groups: int
    grid: int
    threads: int
    shared_bytes: int
    workspace_bytes: int
    in_cluster: bool

    def kernels(self, dtype: str) -> tuple[str, ...]:
        """Return the names of the kernels to launch, in this order, for a map of ``dtype``."""
        stages = ("cluster",) if self.in_cluster else ("measure", "apply")
        return tuple(f"select_motion_{stage}_{SUFFIXES[dtype]}" for stage in stages)


def flags(sign: str, sigma: str, border: str, normalise: str, calibrated: bool) -> int:
    """Return the source's flags for settings that are known to be valid."""
    zero = border == "zero"
    # With a border of copies, an affine map of R changes neither which voxels exceed n·σ nor their order.
    return (
        RISING * (sign == "rising")
        | FALLING * (sign == "falling")
        | SIGMA_OF_ABS * (sigma == "absolute")
        | ZERO_BORDER * zero
        | SHIFT * (zero and normalise == "author-2020")
        | CALIBRATED * calibrated
    )


def as_five(shape: Sequence[int], strides: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides (in elements) of a map → those of [B,C,T,H,W]. Raises ValueError for any other shape."""
    shape, strides = tuple(shape), tuple(strides)
    if len(shape) not in (4, 5) or len(strides) != len(shape):
        raise ValueError(f"relevance must be [B,C,T,H,W] or [B,T,H,W] with one stride each, got {shape}, {strides}")
    if len(shape) == 4:
        shape, strides = (shape[0], 1, *shape[1:]), (strides[0], 0, *strides[1:])
    if min(shape) < 1:
        raise ValueError(f"relevance must hold at least one voxel on every axis, got {shape}")
    if shape[2] < 2:
        raise ValueError(f"relevance must have at least 2 time steps, got {shape}")
    if max(shape[1:]) >= 2**30:
        raise ValueError(f"relevance must have fewer than 2^30 channels, steps, rows and columns, got {shape}")
    return shape, strides


def box_bytes(tile: Sequence[int]) -> int:
    """Shared memory of a tile with one voxel around it."""
    return 4 * math.prod(size + 2 for size in tile)


def plan_launches(shape: Sequence[int], limits: Limits) -> Plan:
    """Cut maps of ``shape`` [B,C,T,H,W] into tiles for the two launches, so that all of a device has work."""
    clips, _, *sizes = shape
    steps, rows, columns = sizes
    budget = min(limits.shared_memory, _TWO_BLOCKS)
    step, column = _even(steps, 16), _even(columns, 2 * _WARP - 2, multiple=8)
    fixed = _PART_BYTES * (MAX_THREADS + _SLOTS)
    most_rows = (budget - fixed) // (4 * (step + 2) * (column + 2)) - 2
    if most_rows < 1:
        raise KernelUnavailable(f"a block of this device has too little shared memory: {limits.shared_memory} bytes")
    row = _even(rows, min(most_rows, _LARGEST_TILE // (step * column)))
    # Smaller tiles read more of their neighbours, and are worth it where multiprocessors would have nothing to do.
    while clips * _tiles(sizes, (step, row, column)) < limits.multiprocessors and max(step, row) > 4:
        if row >= step:
            row = _even(rows, (row + 1) // 2)
        else:
            step = _even(steps, (step + 1) // 2)
    tile = (step, row, column)
    tiles = _tiles(sizes, tile)
    if tiles >= 2**31:
        raise ValueError(f"a clip of {steps}×{rows}×{columns} voxels has too many tiles, {tiles}")
    groups = min(tiles, _MAX_GROUPS)
    threads = min(MAX_THREADS, max(2 * _WARP, 1 << (step * column - 1).bit_length()))
    return Plan(
        tile=tile,
        groups=groups,
        grid=min(clips * groups, 2**31 - 1),
        threads=threads,
        shared_bytes=_PART_BYTES * (threads + _SLOTS) + box_bytes(tile),
        workspace_bytes=clips * groups * _SLOTS * _PART_BYTES,
        in_cluster=False,
    )


def plan_cluster(shape: Sequence[int], limits: Limits, settings: int) -> Plan | None:
    """Cut maps of ``shape`` [B,C,T,H,W] into one cluster for each clip. None where that cannot be.

    It needs sm_90 or later, a clip whose channel sums fit the shared memory of at most eight blocks, and other settings
    than author-2020.
    """
    clips, _, steps, rows, columns = shape
    if limits.arch < CLUSTER_ARCH or settings & SHIFT:
        return None
    size = 1
    while size <= _MAX_CLUSTER:
        tile = (steps, -(-rows // size), columns)
        shared = _PART_BYTES * (MAX_THREADS + _SLOTS * (1 + size)) + box_bytes(tile)
        if shared <= limits.shared_memory and math.prod(tile) <= _LARGEST_TILE and clips * size < 2**31:
            return Plan(tile, size, clips * size, MAX_THREADS, shared, 0, in_cluster=True)
        size *= 2
    return None


def arguments(
    plan: Plan,
    pointers: tuple[int, int, int, int, int],
    shape: Sequence[int],
    strides: Sequence[int],
    n_sigma: float,
    settings: int,
) -> tuple[np.generic[Any], ...]:
    """Return the arguments that all kernels of ``plan`` take, as NumPy scalars of the source's types.

    pointers   device addresses of relevance, motion relevance, mask, workspace and thresholds; the last two may be 0
    """
    values: list[np.generic[Any]] = [np.uint64(pointer) for pointer in pointers]
    values += [np.int64(shape[0]), *(np.int32(size) for size in shape[1:])]
    values += [np.int64(stride) for stride in strides]
    values += [np.float32(n_sigma), np.int32(settings)]
    values += [np.int32(size) for size in (*plan.tile, plan.groups)]
    return tuple(values)


def _tiles(sizes: Sequence[int], tile: Sequence[int]) -> int:
    return math.prod(-(-size // part) for size, part in zip(sizes, tile, strict=True))


def _even(size: int, most: int, multiple: int = 1) -> int:
    """Length of the pieces, ``most`` at most, that ``size`` is cut into as evenly as it goes."""
    pieces = -(-size // max(most, 1))
    length = -(-size // pieces)
    rounded = -(-length // multiple) * multiple
    return rounded if pieces > 1 and rounded <= most else length
