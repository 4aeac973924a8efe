"""What motion selection means, in torch: the definition, and the path of every device without its own kernel.

Three steps, each a function: gradient (``motion_gradient``) → threshold (``sigma_threshold``, or ``mass_threshold`` for
thresholds that were calibrated) → what to keep (``exceeds``, ``keep``). Nothing here looks at values in Python, so that
all of it can be traced; input is checked in ``ops``. Source: Hiley et al. 2020 (arXiv 2003.14285), §3, and the authors'
code for the settings that differ from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

SIGNS = ("absolute", "rising", "falling")
SIGMAS = ("signed", "absolute")
BORDERS = ("replicate", "zero")
NORMALISATIONS = ("none", "author-2020")

_CLIP = (1, 2, 3)


def channel_sum(relevance: torch.Tensor) -> torch.Tensor:
    """[B,C,T,H,W], or [B,T,H,W] as it is → [B,T,H,W], float64 for a float64 map, float32 for every other."""
    dtype = torch.float64 if relevance.dtype == torch.float64 else torch.float32
    return relevance.sum(1, dtype=dtype) if relevance.ndim == 5 else relevance.to(dtype)


def motion_gradient(relevance: torch.Tensor, border: str = "replicate", normalise: str = "none") -> torch.Tensor:
    """Sobel over time of a relevance map: [B,C,T,H,W] or [B,T,H,W] → G [B,T,H,W], channels summed first.

    Kernel [-1, 0, 1] along T (R[t+1] − R[t−1]) times [1, 2, 1] along H and along W. ``border`` says what lies one
    voxel outside the map, on all three axes: a copy of the nearest voxel, or zero. Unit: that of the relevance
    (the weights' magnitudes sum to 32), or none with ``normalise="author-2020"``. float64 for a float64 map, float32
    for every other.
    """
    # One name for all steps: each gives its memory back, warm in the cache, to the next.
    field = channel_sum(relevance)
    if normalise == "author-2020":
        field = _author_2020_range(field)
    field = F.pad(field[:, None], (1, 1, 1, 1, 1, 1), mode="replicate" if border == "replicate" else "constant")[:, 0]
    # The difference comes before the smoothing: where nothing changes, G is then exactly zero.
    field = field[:, 2:] - field[:, :-2]
    field = _smooth(field, 2)
    return _smooth(field, 3)


def sigma_threshold(gradient: torch.Tensor, n_sigma: float, sigma: str = "signed") -> torch.Tensor:
    """n·σ of each clip: G [B,T,H,W] → [B,1,1,1], in G's unit. σ is the unbiased standard deviation of G or of |G|.

    Two passes (mean, then squared deviations), on G scaled to 1 at most: squares neither underflow nor overflow.
    """
    measured = gradient.abs() if sigma == "absolute" else gradient
    peak = torch.maximum(measured.amax(_CLIP, keepdim=True), -measured.amin(_CLIP, keepdim=True))
    peak = peak.clamp_min(torch.finfo(gradient.dtype).tiny)
    # In place from here on: a new block of memory costs as much as the arithmetic.
    squares = measured / peak
    squares.sub_(squares.mean(_CLIP, keepdim=True)).square_()
    variance = squares.sum(_CLIP, keepdim=True) / (math.prod(gradient.shape[1:]) - 1)
    return n_sigma * (peak * variance.sqrt())


def mass_threshold(relevance: torch.Tensor, thresholds: Sequence[float] | torch.Tensor) -> torch.Tensor:
    """q_t·Σ|R| of each clip: R [B,C,T,H,W] or [B,T,H,W] and q [T] → [B,T,1,1], in R's unit.

    |G| above it is |G| above q_t where R is first divided by Σ|R|; a map of zeros is not divided by zero this way.
    """
    summed = channel_sum(relevance)
    mass = summed.abs().sum(_CLIP, keepdim=True)
    return mass * torch.as_tensor(thresholds, dtype=summed.dtype, device=summed.device)[:, None, None]


def exceeds(gradient: torch.Tensor, threshold: torch.Tensor, sign: str = "absolute") -> torch.Tensor:
    """What to keep: G [B,T,H,W], threshold that broadcasts to it → bool [B,T,H,W], strictly above the threshold.

    ``rising`` looks at G, ``falling`` at −G, ``absolute`` at |G|.
    """
    if sign == "absolute":
        gradient = gradient.abs()
    elif sign == "falling":
        gradient = -gradient
    return gradient > threshold


def keep(relevance: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``where(mask, R, 0)`` in R's shape and dtype: R [B,C,T,H,W] or [B,T,H,W], one mask [B,T,H,W] for all channels."""
    wide = mask[:, None] if relevance.ndim == 5 else mask
    if relevance.device.type == "cpu":
        # A product takes a third of the time of where(). It differs in the sign of zeros, and where R is NaN or
        # infinite, which ops refuses on the CPU.
        return relevance * wide
    return torch.where(wide, relevance, 0.0)


def select_motion(
    relevance: torch.Tensor,
    n_sigma: float = 4.0,
    *,
    thresholds: Sequence[float] | torch.Tensor | None = None,
    sign: str = "absolute",
    sigma: str = "signed",
    border: str = "replicate",
    normalise: str = "none",
) -> tuple[torch.Tensor, torch.Tensor]:
    """``selrel_kernels.select_motion`` for tensors, without its checks: what to trace. ``thresholds`` go first."""
    fixed = relevance.detach()
    gradient = motion_gradient(fixed, border, normalise)
    threshold = sigma_threshold(gradient, n_sigma, sigma) if thresholds is None else mass_threshold(fixed, thresholds)
    mask = exceeds(gradient, threshold, sign)
    return keep(relevance, mask), mask


def _smooth(padded: torch.Tensor, axis: int) -> torch.Tensor:
    length = padded.shape[axis] - 2
    ends = padded.narrow(axis, 0, length) + padded.narrow(axis, 2, length)
    return ends.add_(padded.narrow(axis, 1, length), alpha=2)


def _author_2020_range(summed: torch.Tensor) -> torch.Tensor:
    """Divide each clip by its max|R|; then, only where it has negative values, bring it to [0,1] by its min and max."""
    tiny = torch.finfo(summed.dtype).tiny
    unit = summed / summed.abs().amax(_CLIP, keepdim=True).clamp_min(tiny)
    low, high = unit.amin(_CLIP, keepdim=True), unit.amax(_CLIP, keepdim=True)
    return torch.where(low < 0, (unit - low) / (high - low).clamp_min(tiny), unit)
