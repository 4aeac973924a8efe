"""What a map and settings must be, for callers and for the operator alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from . import reference

_TORCH_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NUMPY_DTYPES = (np.float16, np.float32, np.float64)


def check_settings(n_sigma: Any, *, sign: str, sigma: str, border: str, normalise: str) -> None:
    """Raise TypeError or ValueError, naming the setting and what it may be, unless all of them are known."""
    if isinstance(n_sigma, bool) or not isinstance(n_sigma, int | float | np.integer | np.floating):
        raise TypeError(f"n_sigma must be a number, got {type(n_sigma).__name__}")
    if not (math.isfinite(n_sigma) and n_sigma >= 0):
        raise ValueError(f"n_sigma must be finite and 0 or more, got {n_sigma}")
    for name, value, allowed in (
        ("sign", sign, reference.SIGNS),
        ("sigma", sigma, reference.SIGMAS),
        ("border", border, reference.BORDERS),
        ("normalise", normalise, reference.NORMALISATIONS),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_thresholds(thresholds: Any, steps: int) -> tuple[float, ...]:
    """Return ``thresholds`` as floats. Raises TypeError or ValueError unless they are ``steps`` numbers from 0 up."""
    if isinstance(thresholds, torch.Tensor | np.ndarray):
        thresholds = thresholds.tolist()
    numbers = (int, float, np.integer, np.floating)
    if not isinstance(thresholds, Sequence) or not all(isinstance(value, numbers) for value in thresholds):
        raise TypeError(f"thresholds must be numbers, one per time step, got {thresholds!r:.80}")
    if len(thresholds) != steps:
        raise ValueError(f"thresholds must be one per time step, {steps}, got {len(thresholds)}")
    values = tuple(float(value) for value in thresholds)
    for value in values:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"thresholds must be finite and 0 or more, got {value}")
    return values


def check_map(relevance: Any) -> None:
    """Raise TypeError or ValueError unless ``relevance`` is a map: a tensor or an array, its type, its shape."""
    if isinstance(relevance, torch.Tensor):
        known = relevance.dtype in _TORCH_DTYPES
    elif isinstance(relevance, np.ndarray):
        known = relevance.dtype.type in _NUMPY_DTYPES
    else:
        raise TypeError(f"relevance must be a torch tensor or a NumPy array, got {type(relevance).__name__}")
    if not known:
        raise TypeError(f"relevance must be float16, bfloat16 (torch), float32 or float64, got {relevance.dtype}")
    shape = tuple(relevance.shape)
    if len(shape) not in (4, 5):
        raise ValueError(f"relevance must be [B,C,T,H,W], or [B,T,H,W] with its channels summed, got {shape}")
    if 0 in shape:
        raise ValueError(f"relevance must hold at least one voxel on every axis, got {shape}")
    if shape[-3] < 2:
        raise ValueError(f"relevance must have at least 2 time steps (the third axis from the end), got {shape}")
