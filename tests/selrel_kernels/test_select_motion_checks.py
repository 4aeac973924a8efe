"""What select_motion refuses, and how it says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from selrel_kernels import select_motion


@pytest.mark.parametrize(
    ("relevance", "error", "message"),
    [
        ([[1.0]], TypeError, "torch tensor or a NumPy array, got list"),
        ((torch.zeros(1, 3, 4, 5, 5),), TypeError, "got tuple"),
        (torch.zeros(1, 3, 4, 5, 5, dtype=torch.int64), TypeError, "float16.*got torch.int64"),
        (torch.zeros(1, 3, 4, 5, 5, dtype=torch.complex64), TypeError, "got torch.complex64"),
        (np.zeros((1, 3, 4, 5, 5), np.uint8), TypeError, "got uint8"),
        (np.zeros((1, 3, 4, 5, 5), bool), TypeError, "got bool"),
        (torch.zeros(4, 5, 5), ValueError, r"\[B,C,T,H,W\].*got \(4, 5, 5\)"),
        (np.zeros((1, 1, 3, 4, 5, 5)), ValueError, r"got \(1, 1, 3, 4, 5, 5\)"),
        (torch.zeros(1, 3, 1, 5, 5), ValueError, r"at least 2 time steps.*got \(1, 3, 1, 5, 5\)"),
        (torch.zeros(1, 1, 5, 5), ValueError, "at least 2 time steps"),
        (torch.zeros(0, 3, 4, 5, 5), ValueError, "at least one voxel"),
        (torch.zeros(1, 3, 4, 0, 5), ValueError, "at least one voxel"),
        (np.full((1, 2, 3, 3), 3e38, np.float32) * [[[[-1]], [[1]]]], None, ""),
        (torch.full((1, 2, 3, 3), 3e38) * torch.tensor([-1.0, 1.0])[:, None, None], ValueError, "too large"),
    ],
)
def test_bad_maps(relevance: Any, error: type[Exception] | None, message: str) -> None:
    if error is None:  # the same values fit in float64
        assert relevance.dtype == np.float64
        assert select_motion(relevance, 0.5)[1].all()
        return
    with pytest.raises(error, match=message) as raised:
        select_motion(relevance)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"n_sigma": -1}, ValueError, "n_sigma must be finite and 0 or more, got -1"),
        ({"n_sigma": float("nan")}, ValueError, "got nan"),
        ({"n_sigma": float("inf")}, ValueError, "got inf"),
        ({"n_sigma": "4"}, TypeError, "n_sigma must be a number, got str"),
        ({"n_sigma": True}, TypeError, "got bool"),
        ({"sign": "up"}, ValueError, "sign must be one of 'absolute', 'rising', 'falling', got 'up'"),
        ({"sigma": None}, ValueError, "sigma must be one of 'signed', 'absolute', got None"),
        ({"border": "reflect"}, ValueError, "border must be one of 'replicate', 'zero', got 'reflect'"),
        ({"normalise": "max"}, ValueError, "normalise must be one of 'none', 'author-2020', got 'max'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        select_motion(torch.zeros(1, 3, 4, 5, 5), **settings)
    assert "\n" not in str(raised.value)


def test_other_devices_are_not_waited_for() -> None:
    # A meta tensor has no values: any look at them would raise.
    motion_relevance, mask = select_motion(torch.zeros(2, 3, 4, 5, 5, dtype=torch.bfloat16, device="meta"))
    assert (motion_relevance.shape, motion_relevance.dtype) == ((2, 3, 4, 5, 5), torch.bfloat16)
    assert (mask.shape, mask.dtype) == ((2, 4, 5, 5), torch.bool)
