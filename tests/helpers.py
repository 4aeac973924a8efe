"""What tests of several packages share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch


def assert_mask_close(mask: Any, reference: Any, margin: Any, *, band: Any, most: float = 1e-3) -> int:
    """Compare two selections, and return how many voxels differ.

    ``margin`` is how far the reference's gradient lies above its threshold at each voxel (|G| − nσ), ``band`` how far
    rounding can move it, in the same unit (a number, or anything that broadcasts to the margin). A voxel that differs
    outside the band fails; inside it, up to the share ``most`` of all voxels may differ.
    """
    mask, reference, margin = (_array(value) for value in (mask, reference, margin))
    assert mask.dtype == np.bool_, f"mask must be bool, got {mask.dtype}"
    assert mask.shape == reference.shape == margin.shape, f"shapes {mask.shape}, {reference.shape}, {margin.shape}"
    flipped = mask != reference
    outside = flipped & ~(np.abs(margin) <= band)
    assert not outside.any(), (
        f"{outside.sum()} of {mask.size} voxels differ outside the band {band}, "
        f"the furthest at margin {np.abs(margin[outside]).max():.3g}, index {tuple(np.argwhere(outside)[0])}"
    )
    assert flipped.sum() <= most * mask.size, f"{flipped.sum()} of {mask.size} voxels differ inside the band {band}"
    return int(flipped.sum())


def _array(value: Any) -> npt.NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def slow_but(names: Iterable[Any], *fast: Any) -> list[Any]:
    """Return parameters for ``names``, all marked slow but those in ``fast``."""
    names = list(names)
    assert set(fast) <= set(names), f"{fast} are not all among {names}"
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]
