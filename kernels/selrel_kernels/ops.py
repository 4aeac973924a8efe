"""Motion selection for callers: checked input, torch or NumPy."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch

from . import reference
from .checks import check_map, check_settings, check_thresholds

_WITH_THRESHOLDS = (None, "absolute", "signed", "replicate", "none")

DEFAULT_N_SIGMA = 4.0


@overload
def select_motion(
    relevance: torch.Tensor,
    n_sigma: float | None = ...,
    *,
    thresholds: Sequence[float] | npt.NDArray[Any] | torch.Tensor | None = ...,
    sign: str = ...,
    sigma: str = ...,
    border: str = ...,
    normalise: str = ...,
) -> tuple[torch.Tensor, torch.Tensor]: ...
@overload
def select_motion(
    relevance: npt.NDArray[Any],
    n_sigma: float | None = ...,
    *,
    thresholds: Sequence[float] | npt.NDArray[Any] | torch.Tensor | None = ...,
    sign: str = ...,
    sigma: str = ...,
    border: str = ...,
    normalise: str = ...,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]: ...
def select_motion(
    relevance: torch.Tensor | npt.NDArray[Any],
    n_sigma: float | None = None,
    *,
    thresholds: Sequence[float] | npt.NDArray[Any] | torch.Tensor | None = None,
    sign: str = "absolute",
    sigma: str = "signed",
    border: str = "replicate",
    normalise: str = "none",
) -> tuple[torch.Tensor, torch.Tensor] | tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Keep the relevance that changes over time: R → (motion relevance, mask).

    relevance  float [B,C,T,H,W], or [B,T,H,W] with the channels summed already; torch (any device) or NumPy.
               float16, bfloat16 and float32 are computed in float32, float64 in float64. CUDA tensors go to the
               operator ``torch.ops.selrel.select_motion``, which launches the kernel where it can.
    n_sigma    the threshold, in standard deviations σ of the gradient over time G of each clip; 4 where neither it nor
               ``thresholds`` is given. G is a Sobel filter, R[t+1] − R[t−1] smoothed over H and W, of the channel sum
               (``reference.motion_gradient``).
    thresholds in place of n_sigma, one number per time step, [T]: keep where |G_t| > thresholds[t]·Σ|R|, the sum over
               the clip. Thresholds that were calibrated on clips without motion have a false-positive rate, which n·σ
               has not. They hold for the other settings as they are by default, so none may be given with them.
    sign       keep where |G| > n·σ ("absolute"), G > n·σ ("rising") or −G > n·σ ("falling").
    sigma      σ is the unbiased standard deviation, over T, H and W of a clip, of G ("signed") or |G| ("absolute").
    border     outside the map, on T, H and W, lies a copy of the nearest voxel ("replicate") or zero ("zero").
    normalise  what G is taken of: R ("none"), or R ÷ max|R| of the clip, then brought to [0,1] where the clip has
               negative values ("author-2020").

    Returns motion relevance, ``where(mask, R, 0)`` in the shape and dtype of ``relevance``, and the mask, bool
    [B,T,H,W]. The comparison is strict: with "replicate", a map that does not change keeps nothing. The motion
    relevance is differentiable in the relevance, with the mask held fixed.

    Raises TypeError for anything but a float tensor or array; ValueError for another shape, fewer than two time steps,
    an unknown setting, thresholds that are not T numbers of 0 or more or come with other settings, and, on the CPU, a
    map that holds NaN or infinity. On other devices that check would have to wait for the device: there, a clip with
    NaN or infinity keeps nothing. Source: Hiley et al. 2020, §3.
    """
    if thresholds is not None and (n_sigma, sign, sigma, border, normalise) != _WITH_THRESHOLDS:
        raise ValueError("thresholds hold for the default settings: give no n_sigma, sign, sigma, border or normalise")
    n_sigma = DEFAULT_N_SIGMA if n_sigma is None else n_sigma
    check_settings(n_sigma, sign=sign, sigma=sigma, border=border, normalise=normalise)
    tensor = _as_tensor(relevance)
    if tensor.device.type == "cuda":
        limits = None if thresholds is None else check_thresholds(thresholds, tensor.shape[-3])
        return _on_cuda(tensor, float(n_sigma), limits, sign, sigma, border, normalise)
    gradient = reference.motion_gradient(tensor.detach(), border, normalise)
    if thresholds is None:
        threshold = reference.sigma_threshold(gradient, float(n_sigma), sigma)
    else:
        threshold = reference.mass_threshold(tensor.detach(), check_thresholds(thresholds, tensor.shape[-3]))
    if threshold.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_finite(threshold)
    mask = reference.exceeds(gradient, threshold, sign)
    motion_relevance = reference.keep(tensor, mask)
    if isinstance(relevance, torch.Tensor):
        return motion_relevance, mask
    return motion_relevance.numpy(), mask.numpy()


def _as_tensor(relevance: Any) -> torch.Tensor:
    check_map(relevance)
    if isinstance(relevance, torch.Tensor):
        return relevance
    # torch takes neither negative strides nor foreign byte orders, and warns of arrays that cannot be written.
    array = np.ascontiguousarray(relevance, dtype=relevance.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _on_cuda(
    relevance: torch.Tensor, n_sigma: float, thresholds: tuple[float, ...] | None, *settings: str
) -> tuple[torch.Tensor, torch.Tensor]:
    from .torch_operator import select_motion as operator  # registered when a GPU is used

    limits = None
    if thresholds is not None:
        # Under CUDA graphs nothing may be copied from the host: the first call does it.
        make = _limits_on.__wrapped__ if torch.compiler.is_compiling() else _limits_on
        limits = make(thresholds, relevance.device)
    motion, mask = operator(relevance, n_sigma, limits, *settings)
    return motion, mask


@functools.lru_cache(maxsize=16)
def _limits_on(thresholds: tuple[float, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor(thresholds, dtype=torch.float32, device=device)


def _check_finite(threshold: torch.Tensor) -> None:
    # One bad voxel makes its clip's threshold bad, so few numbers answer for the whole map: no further pass over it.
    if math.isfinite(threshold.amax().item()):
        return
    clips = [index for index, value in enumerate(threshold.flatten(1).amax(1).tolist()) if not math.isfinite(value)]
    raise ValueError(
        f"relevance of clip {', '.join(map(str, clips))} holds NaN, infinity or values too large for its arithmetic: "
        "look for a division by zero in the explanation, or scale the map"
    )
