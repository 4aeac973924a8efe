"""What the parity certificate measures: distances of maps, rank correlation, margins of the selection. NumPy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.clips.cutting import frozen_frame
from selrel_zennit.comparison import cosine as cosines

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]


def motion_margin(
    relevance: Array,
    n_sigma: float = 4.0,
    sign: str = "absolute",
    sigma: str = "signed",
    border: str = "replicate",
    normalise: str = "none",
    thresholds: Sequence[float] | None = None,
    alpha: float | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Return how far each voxel of a map [T,H,W] lies above the threshold of the selection, and the threshold.

    The threshold broadcasts to the map: one number, or one per time step where ``thresholds`` are calibrated. The
    arguments are an artifact's ``selection``; ``alpha`` names the false-positive rate of ``thresholds`` and changes
    nothing. Source: ``selrel_kernels.select_motion``, whose settings these are.
    """
    values = relevance.astype(np.float64)
    if normalise == "author-2020":
        values = values / max(float(np.abs(values).max()), np.finfo(np.float64).tiny)
        if values.min() < 0:
            values = (values - values.min()) / (values.max() - values.min())
    padded = np.pad(values, 1, mode="edge" if border == "replicate" else "constant")
    gradient = padded[2:] - padded[:-2]
    gradient = gradient[:, :-2] + 2 * gradient[:, 1:-1] + gradient[:, 2:]
    gradient = gradient[:, :, :-2] + 2 * gradient[:, :, 1:-1] + gradient[:, :, 2:]
    if thresholds is not None:
        threshold = np.abs(values).sum() * np.asarray(thresholds, np.float64)[:, None, None]
    else:
        spread = np.std(np.abs(gradient) if sigma == "absolute" else gradient, ddof=1)
        threshold = np.full((1, 1, 1), n_sigma * spread)
    measured = {"absolute": np.abs(gradient), "rising": gradient, "falling": -gradient}[sign]
    return np.asarray(measured - threshold), np.asarray(threshold)


def distance(value: Array, reference: Array) -> float:
    """Return ‖value − reference‖ ÷ ‖reference‖; 0 for two maps of zeros, infinity where only the reference is one."""
    difference, norm = (float(np.linalg.norm(x.astype(np.float64))) for x in (value - reference, reference))
    return difference / norm if norm else math.inf if difference else 0.0


def cosine(a: Array, b: Array) -> float:
    """Return the cosine of the angle between two vectors; of one that is zero everywhere 1 where both are, else 0."""
    (found,) = cosines(a.reshape(1, -1), b.reshape(1, -1))
    return float(found) if np.isfinite(found) else float(np.array_equal(a, b))


def ranks(values: Array) -> npt.NDArray[np.float64]:
    """Return ranks, equal values sharing the mean of theirs: relevance has many zeros."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2.0)[places.ravel()], dtype=np.float64)


def frozen(clips: Array) -> Array:
    """Return clips, float32 [N,3,T,H,W] or uint8 [N,T,H,W,3], with their middle frame in place of all others."""
    axis = 1 if clips.dtype == np.uint8 else 2
    middle = np.take(clips, [frozen_frame(clips.shape[axis])], axis)
    return np.ascontiguousarray(np.broadcast_to(middle, clips.shape))


def is_noise(clip: Array) -> bool:
    """Say whether no pixel resembles its neighbours: along T, H and W the correlation is below 0.05."""
    values = (clip.transpose(3, 0, 1, 2) if clip.dtype == np.uint8 else clip).astype(np.float64)
    values -= values.mean((1, 2, 3), keepdims=True)
    power = float((values**2).mean())
    pairs = ((values.take(range(1, n), axis), values.take(range(n - 1), axis)) for axis, n in _lengths(values))
    return power > 0 and all(abs(float((a * b).mean())) < 0.05 * power for a, b in pairs)


def _lengths(values: Array) -> list[tuple[int, int]]:
    return [(axis, values.shape[axis]) for axis in (1, 2, 3) if values.shape[axis] > 1]
