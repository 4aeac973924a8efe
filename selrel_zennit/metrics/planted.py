"""Scores of a relevance map against a planted cause: exact masks and exact flow of a synthetic clip. NumPy alone.

All functions take maps [T,H,W] or [B,T,H,W] and return one float64 per clip: a scalar array, or [B]. A score that is
not defined, such as a share of a map that is zero everywhere, is NaN.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
Map = npt.NDArray[np.floating[Any]]
Region = npt.NDArray[np.bool_]

# Where the authors' code of Hiley et al. 2020 takes relevance to be positive: from this share of its maximum on.
POSITIVE = 10 / 255

_CLIP = (-3, -2, -1)


class TopShare(NamedTuple):
    """How much of a map's top voxels lies in a region, 0…1: by number of voxels, and by Σ|R|."""

    area: Scores
    mass: Scores


class FlowPrecision(NamedTuple):
    """Share of positive relevance that has flow; share of all voxels that has flow; the first ÷ the second."""

    precision: Scores
    base_rate: Scores
    lift: Scores


def mass_inside(relevance: Map, region: Region) -> Scores:
    """Return the share of relevance in a region, Σ|R|·region ÷ Σ|R|.

    ``relevance`` [B,T,H,W] or [T,H,W], ``region`` bool of the same shape. NaN for a map of zeros. With the causal
    sprite's mask as region this is *relevance mass*, with the distractor's *distractor leakage*, with a selection's
    the *kept mass*. Source: Arras et al. 2022, arXiv 2003.07258 (relevance mass accuracy), here with |R|.
    """
    _check(relevance, region)
    size = np.abs(relevance)
    inside, whole = (one.sum(_CLIP, dtype=np.float64) for one in (size * region, size))
    with np.errstate(invalid="ignore"):
        return np.asarray(inside / whole)


def kept_area(relevance: Map, mask: Region) -> Scores:
    """Return the share of the voxels with relevance that a selection keeps, |R≠0 ∧ mask| ÷ |R≠0|. NaN for zeros."""
    _check(relevance, mask)
    nonzero = relevance != 0
    with np.errstate(invalid="ignore"):
        return np.asarray((nonzero & mask).sum(_CLIP) / nonzero.sum(_CLIP))


def top_share(relevance: Map, count: int | npt.NDArray[np.integer[Any]], region: Region) -> TopShare:
    """Return how much of the ``count`` voxels with the greatest |R| lies in a region.

    ``count`` is one number, or one per clip, 0 to T·H·W. Of voxels that are tied for the last places, each is as likely
    as the others to get one: the result is the expectation over the order of ties, exactly. NaN for a count of 0, and
    for the mass where the top voxels are zero. Raises ValueError for a count out of range.
    """
    _check(relevance, region)
    batch, voxels = relevance.shape[:-3], math.prod(relevance.shape[-3:])
    sizes, inside = np.abs(relevance).reshape(-1, voxels), region.reshape(-1, voxels)
    counts = np.broadcast_to(count, batch).reshape(-1)
    if counts.size and not (counts.min() >= 0 and counts.max() <= voxels):
        raise ValueError(f"count must lie in 0…{voxels}, got {count}")
    found = [_top_share(*one) for one in zip(sizes, counts.tolist(), inside, strict=True)]
    area, mass = np.asarray(found, np.float64).reshape(*batch, 2).transpose(-1, *range(len(batch)))
    return TopShare(np.asarray(area), np.asarray(mass))


def rank_accuracy(relevance: Map, region: Region) -> Scores:
    """Return the share of the |region| voxels with the greatest |R| that lie in the region; ties as in ``top_share``.

    Chance is the region's share of the clip. NaN for an empty region. After a selection that keeps less than the
    region's area, zeros fill the top at random: see ``top_share`` with the kept area for what the selection itself
    finds. Source: Arras et al. 2022, arXiv 2003.07258 (relevance rank accuracy).
    """
    return top_share(relevance, region.sum(_CLIP), region).area


def flow_precision(
    relevance: Map, flow: Map, *, relevance_threshold: float = POSITIVE, flow_sigma: float = 1.0
) -> FlowPrecision:
    """Return the share of voxels with positive relevance that have optical flow, and how much chance there is in it.

    ``relevance`` is [B,T,H,W] or [T,H,W], ``flow`` [B,T-1,H,W,2] or [T-1,H,W,2]: the flow of frames 0 to T−2. The last
    frame has none and is left out of numerator and denominator. Relevance is positive from ``relevance_threshold`` ×
    the clip's greatest relevance on (0: where it is above zero); flow is positive where its magnitude exceeds
    ``flow_sigma`` standard deviations of the magnitude in that frame (0: wherever something moves).

    NaN where no relevance is positive; the lift also where nothing flows. Source: Hiley et al. 2020, §5, with the
    thresholds of the authors' code; base rate and lift are ours.
    """
    expected = (*relevance.shape[:-3], relevance.shape[-3] - 1, *relevance.shape[-2:], 2)
    if flow.shape != expected:
        raise ValueError(f"flow must be {expected} for relevance {relevance.shape}, got {flow.shape}")
    least = relevance_threshold * relevance.max(_CLIP, keepdims=True)
    positive = ((relevance >= least) & (relevance > 0))[..., :-1, :, :]
    magnitude = np.hypot(flow[..., 0], flow[..., 1], dtype=np.float64)
    moving = magnitude > flow_sigma * magnitude.std((-2, -1), keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = (positive & moving).sum(_CLIP) / positive.sum(_CLIP)
        base_rate = moving.mean(_CLIP)
        lift = np.where(base_rate > 0, precision / base_rate, np.nan)
    return FlowPrecision(np.asarray(precision), np.asarray(base_rate), np.asarray(lift))


def swept(mask: Region) -> Region:
    """Return where a thing is at the frame before, at, or after: mask[t−1] ∨ mask[t] ∨ mask[t+1], [B,T,H,W] or [T,H,W].

    A gradient over time is as great where something leaves or arrives as where it stands. A map that is selected by one
    and scored on the exact mask pays for that; on the swept mask it does not.
    """
    wide = mask.copy()
    wide[..., 1:, :, :] |= mask[..., :-1, :, :]
    wide[..., :-1, :, :] |= mask[..., 1:, :, :]
    return wide


def planted_scores(relevance: Map, causal: Region, distractor: Region, flow: Map) -> dict[str, Scores]:
    """Return all scores of a map, relevance or motion relevance, against the truth of a synthetic clip.

    ``causal`` and ``distractor`` are the masks of ``SyntheticClip``, ``flow`` its flow; what neither sprite covers is
    the scene. Keys: causal_mass, distractor_mass, scene_mass (they sum to 1), swept_mass (on the swept causal mask),
    rank_accuracy, flow_precision, flow_lift.
    """
    precision = flow_precision(relevance, flow)
    return {
        "causal_mass": mass_inside(relevance, causal),
        "distractor_mass": mass_inside(relevance, distractor),
        "scene_mass": mass_inside(relevance, ~(causal | distractor)),
        "swept_mass": mass_inside(relevance, swept(causal)),
        "rank_accuracy": rank_accuracy(relevance, causal),
        "flow_precision": precision.precision,
        "flow_lift": precision.lift,
    }


def _top_share(size: Map, count: int, inside: Region) -> tuple[float, float]:
    if count == 0:
        return math.nan, math.nan
    last = np.partition(size, size.size - count)[size.size - count]
    above, tied = size > last, size == last
    # Of the voxels tied with the last one, this share is in the top on average.
    chance = (count - int(above.sum())) / int(tied.sum())
    area = (int((above & inside).sum()) + chance * int((tied & inside).sum())) / count
    above_mass = size[above].sum(dtype=np.float64)
    inside_mass = size[above & inside].sum(dtype=np.float64)
    total = float(above_mass) + (count - int(above.sum())) * float(last)
    part = float(inside_mass) + chance * int((tied & inside).sum()) * float(last)
    return area, part / total if total else math.nan


def _check(relevance: Map, region: Region) -> None:
    if relevance.ndim not in (3, 4) or region.shape != relevance.shape or region.dtype != np.bool_:
        raise ValueError(
            "relevance must be [B,T,H,W] or [T,H,W] and the region bool of its shape, "
            f"got {relevance.shape} and {region.dtype} {region.shape}"
        )
