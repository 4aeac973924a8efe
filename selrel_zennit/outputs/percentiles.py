"""Percentiles of more numbers than memory holds, exactly: counted by their bits, in two passes. NumPy alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

_HALF = 1 << 16


def percentiles(
    parts: Callable[[], Iterable[npt.NDArray[np.float32]]], wanted: Sequence[float]
) -> tuple[list[float], int]:
    """Return ``np.percentile`` of all values of ``parts()`` in float64, linear, and how many values there are.

    ``parts`` is called twice and gives float32 arrays, the same both times, none of them NaN. The percentiles of no
    values are NaN.
    """
    # The order of floats is that of these whole numbers: first their upper halves are counted, then, where a rank
    # falls, the lower ones.
    upper = np.zeros(_HALF, np.int64)
    for values in parts():
        upper += np.bincount(_keys(values) >> np.uint32(16), minlength=_HALF)
    below, count = np.cumsum(upper), int(upper.sum())
    if not count:
        return [math.nan] * len(wanted), 0
    places = [(count - 1) * (percentile / 100.0) for percentile in wanted]
    ranks = {rank for place in places for rank in (math.floor(place), min(math.floor(place) + 1, count - 1))}
    bins = {rank: int(np.searchsorted(below, rank, side="right")) for rank in ranks}
    lower = {one: np.zeros(_HALF, np.int64) for one in bins.values()}
    for values in parts():
        keys = _keys(values)
        for one, counts in lower.items():
            inside = keys[keys >> np.uint32(16) == one] & np.uint32(_HALF - 1)
            counts += np.bincount(inside, minlength=_HALF)
    found = {}
    for rank, one in bins.items():
        within = rank - (int(below[one - 1]) if one else 0)
        found[rank] = _value(one << 16 | int(np.searchsorted(np.cumsum(lower[one]), within, side="right")))
    ends = [(found[math.floor(place)], found[min(math.floor(place) + 1, count - 1)]) for place in places]
    return [_between(low, high, place % 1.0) for (low, high), place in zip(ends, places, strict=True)], count


def _between(low: float, high: float, share: float) -> float:
    # As NumPy does it, to the last bit: from the nearer end.
    return high - (high - low) * (1.0 - share) if share >= 0.5 else low + (high - low) * share


def _keys(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    bits = np.ascontiguousarray(values, np.float32).ravel().view(np.uint32)
    return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))


def _value(key: int) -> float:
    bits = key ^ (1 << 31) if key >> 31 else key ^ 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))
