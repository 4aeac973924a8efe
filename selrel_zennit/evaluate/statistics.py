"""Means over videos with bootstrap intervals, and the difference of two methods on the same videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean over videos, its 95 % bootstrap interval, the spread between videos, and how many there were."""

    mean: float
    low: float
    high: float
    std: float
    videos: int

    def to_dict(self) -> dict[str, float]:
        """Return the figures as JSON takes them."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "std": self.std, "videos": self.videos}


def by_video(rows: Sequence[Mapping[str, Any]], score: str) -> dict[str, float]:
    """Return the mean of a score over the clips of each video; clips where it is not defined are left out."""
    found: dict[str, list[float]] = {}
    for row in rows:
        value = row.get(score)
        if value is not None and np.isfinite(value):
            found.setdefault(row["video"], []).append(float(value))
    return {video: float(np.mean(values)) for video, values in found.items()}


def interval(values: Sequence[float], seed: int = 0) -> Interval | None:
    """Return the mean of one value a video with its 95 % interval (percentile bootstrap); None without any."""
    if not len(values):
        return None
    array = np.asarray(values, np.float64)
    means = _resampled(array, seed)
    low, high = np.percentile(means, (2.5, 97.5))
    spread = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return Interval(float(array.mean()), float(low), float(high), spread, len(array))


def compared(first: Mapping[str, float], second: Mapping[str, float], seed: int = 0) -> tuple[Interval, float]:
    """Return the mean difference first − second over the videos that both have, and its two-sided p.

    Paired bootstrap: p is twice the smaller share of resampled differences on either side of 0, at least 1/(B+1).
    Raises InputError where they have no video in common.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        raise InputError("the two have no video in common")
    differences = np.array([first[name] - second[name] for name in common])
    means = _resampled(differences, seed)
    found = interval(differences.tolist(), seed)
    assert found is not None
    sides = [int((means <= 0).sum()), int((means >= 0).sum())]
    return found, min(1.0, 2 * (min(sides) + 1) / (len(means) + 1))


def _resampled(values: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    return np.asarray(values[drawn].mean(1))
