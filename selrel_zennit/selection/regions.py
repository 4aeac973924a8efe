"""Regions that move, at a stated rate of false discoveries: cells tested against those of clips that stand still."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from zennit.attribution import Attributor

from selrel_kernels import reference
from selrel_kernels.checks import check_map

from ..errors import InputError
from .relevance_source import RelevanceSource

Array = TypeVar("Array", torch.Tensor, npt.NDArray[Any])

CELL = (2, 8, 8)
"""Frames, rows and columns of a cell."""


@dataclass(frozen=True)
class RegionNull:
    """How far cells of clips that stand still change: what p-values are read from.

    A cell's change is the mean of |G| ÷ Σ|R| over it, G as in MotionSelection with its default settings. ``levels`` are
    p-values, rising; ``limits[s][k]`` is what a cell of the time slab s must exceed for its p-value to be at most
    ``levels[k]``. ``cells`` is the number of still cells of each slab that the limits come from; no p-value is below
    1/(cells + 1).

    Raises InputError on construction for levels or limits that cannot be.
    """

    cell: tuple[int, int, int]
    levels: tuple[float, ...]
    limits: tuple[tuple[float, ...], ...]
    cells: int

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip(self.levels, self.levels[1:], strict=False))
        if not self.levels or not rising or not 0 < self.levels[0] <= self.levels[-1] < 1:
            raise InputError(f"p-values must rise between 0 and 1, got {self.levels!r:.80}")
        if len(self.cell) != 3 or not all(isinstance(size, int) and size > 0 for size in self.cell):
            raise InputError(f"a cell is frames, rows and columns, got {self.cell!r}")
        values = np.asarray(self.limits, np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.levels) or not (np.isfinite(values) & (values >= 0)).all():
            raise InputError("limits of regions must be one finite number of 0 or more for each time slab and p-value")

    @classmethod
    def of(cls, changes: npt.NDArray[Any], cell: tuple[int, int, int] = CELL, levels: int = 64) -> RegionNull:
        """Return the null of ``changes`` [slabs, cells], as ``cell_changes`` gives them of still clips.

        p = (1 + the number of still cells that change as much or more) ÷ (their number + 1), for up to ``levels``
        values of p between the least there is and 0.5, spaced by ratios.
        """
        ordered = -np.sort(-np.asarray(changes, np.float64), axis=1)
        count = ordered.shape[1]
        ranks = np.unique(np.rint(np.geomspace(1, max((count + 1) // 2, 1), levels)).astype(int))
        return cls(
            cell,
            tuple((ranks / (count + 1)).tolist()),
            tuple(tuple(slab[ranks - 1].tolist()) for slab in ordered),
            count,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        levels, limits = list(self.levels), [list(slab) for slab in self.limits]
        return {"cell": list(self.cell), "levels": levels, "limits": limits, "cells": self.cells}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RegionNull:
        """Read what ``to_dict`` wrote."""
        limits = tuple(tuple(map(float, slab)) for slab in values["limits"])
        return cls(tuple(values["cell"]), tuple(map(float, values["levels"])), limits, int(values["cells"]))


@dataclass(frozen=True)
class RegionSelection:
    """Which regions move, of all that are kept at most a share ``q`` in error.

    The clip is cut into cells of frames × rows × columns. Each gets a p-value, the share of cells of still clips that
    change as much or more, and Benjamini and Hochberg's procedure keeps those of the least. Of a clip in which nothing
    moves, any cell is kept with probability q; of one in which something does, a share q of the kept cells is expected
    to be in error, provided that cells where nothing moves change as they do where nothing at all moves. A cell's
    relevance may also change because something moves elsewhere: that is counted as motion.

    ``null`` and ``made_for`` come from a ``Calibration``. Called like MotionSelection; all voxels of a kept cell are
    kept. Raises InputError on construction for a q outside (0, 0.5).

    Source: Benjamini and Hochberg 1995.
    """

    q: float
    null: RegionNull
    made_for: RelevanceSource

    def __post_init__(self) -> None:
        check_q(self.q)

    def check(self, attributor: Attributor) -> None:
        """Raise InputError unless the null is that of this attributor: its model, method and options."""
        difference = self.made_for.difference(RelevanceSource.of(attributor))
        if difference:
            raise InputError(f"the calibration is for another {difference}: make one with `selrel calibrate`")

    @property
    def settings(self) -> dict[str, Any]:
        """What a summary says of it."""
        return {"q": self.q, "cell": list(self.null.cell)}

    def __call__(self, relevance: Array) -> tuple[Array, Array]:
        """Return (motion relevance in the input's shape and type, mask bool [B,T,H,W])."""
        mask = self.mask(relevance)
        wide = mask[:, None] if relevance.ndim == 5 else mask
        if isinstance(relevance, torch.Tensor):
            return torch.where(wide, relevance, torch.zeros((), dtype=relevance.dtype, device=relevance.device)), mask
        return np.where(wide, relevance, np.zeros((), relevance.dtype)), mask

    def mask(self, relevance: Array) -> Array:
        """Return the mask alone, bool [B,T,H,W]."""
        try:
            check_map(relevance)
        except (TypeError, ValueError) as error:
            raise InputError(str(error)) from None
        if isinstance(relevance, torch.Tensor):
            return self._mask(relevance.detach())
        return self._mask(torch.from_numpy(np.ascontiguousarray(relevance))).numpy()

    def p_values(self, relevance: torch.Tensor) -> torch.Tensor:
        """Return the p-value of each cell, [B,slabs,rows,columns]: the least level that it passes, 1 where none."""
        passed, levels = self._passed(relevance)
        return torch.where(passed, levels, 1.0).amin(-1)

    def _passed(self, relevance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        changes = cell_changes(relevance, self.null.cell)
        limits = torch.as_tensor(self.null.limits, dtype=changes.dtype, device=changes.device)
        if changes.shape[1] != len(limits):
            raise InputError(f"regions were calibrated for {len(limits)} time slabs, the map has {changes.shape[1]}")
        levels = torch.as_tensor(self.null.levels, dtype=torch.float64, device=changes.device)
        return changes[..., None] > limits[:, None, None], levels

    def _mask(self, relevance: torch.Tensor) -> torch.Tensor:
        passed, levels = self._passed(relevance)
        counts = passed.flatten(1, 3).sum(1)
        cells = passed[0, ..., 0].numel()
        # p-values are levels alone, so the procedure's search runs over these: the greatest p with p ≤ q·(count) ÷ m.
        fits = levels <= self.q * counts / cells
        best = torch.where(fits, torch.arange(1, len(levels) + 1, device=levels.device), 0).amax(1)
        chosen = torch.arange(1, len(levels) + 1, device=levels.device) == best[:, None]
        kept = (passed & chosen[:, None, None, None]).any(-1)
        for axis, (size, length) in enumerate(zip(self.null.cell, relevance.shape[-3:], strict=True), 1):
            kept = kept.repeat_interleave(size, axis).narrow(axis, 0, length)
        return kept


def cell_changes(relevance: torch.Tensor, cell: tuple[int, int, int] = CELL) -> torch.Tensor:
    """Mean |G| ÷ Σ|R| of each cell: R [B,C,T,H,W] or [B,T,H,W] → [B,slabs,rows,columns].

    Cells at the far ends may be smaller. Of a map of zeros: zero.
    """
    summed = reference.channel_sum(relevance)
    mass = summed.abs().sum((1, 2, 3), keepdim=True)
    gradient = reference.motion_gradient(summed).abs() / mass.clamp_min(torch.finfo(mass.dtype).tiny)
    return functional.avg_pool3d(gradient[:, None], cell, cell, ceil_mode=True, count_include_pad=False)[:, 0]


def check_q(q: Any) -> None:
    """Raise InputError unless ``q`` is a rate of false discoveries, a number in (0, 0.5)."""
    if isinstance(q, bool) or not isinstance(q, int | float) or not 0 < q < 0.5:
        raise InputError(f"q is a rate of false discoveries and must lie in (0, 0.5), got {q!r}")
