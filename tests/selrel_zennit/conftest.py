"""Fixtures of the tests of selrel_zennit."""

import numpy as np
import pytest
import torch

from networks import small_c3d


@pytest.fixture
def clip() -> torch.Tensor:
    """A small clip with what real video has: flat regions, saturated pixels, repeated frames, and noise."""
    rng = np.random.default_rng(5)
    pixels = np.full((1, 16, 16, 16, 3), 120, np.uint8)
    pixels[:, :, :, 8:] = rng.integers(0, 256, (1, 16, 16, 8, 3), dtype=np.uint8)
    for step in range(16):
        pixels[:, step, 3:7, step % 8 : step % 8 + 3] = 255
    pixels[:, 9] = pixels[:, 8]
    return torch.from_numpy(small_c3d().spec.from_pixels(pixels))
