"""Static scenes: eight kinds of pattern, each drawn afresh, which wrap around at the frame's edges."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from ..clips.spec import Frames

Array = npt.NDArray[np.float32]

# Scene k is the own scene of class k.
SCENES = ("clouds", "sand", "planks", "fence", "tiles", "pebbles", "waves", "bricks")

_TURN = np.float32(2 * np.pi)


def draw_scene(rng: np.random.Generator, kind: str, height: int, width: int) -> Frames:
    """Return a scene of one of the kinds SCENES, uint8 [H,W,3]: pattern, phase and two muted colours are random."""
    x, y = _grid(height, width)
    phase_x, phase_y, count = rng.random(3)
    x, y = x + np.float32(phase_x), y + np.float32(phase_y)
    pattern: npt.NDArray[np.floating]
    few, many = 3 + int(count * 3), 5 + int(count * 4)
    if kind == "clouds":
        pattern = 0.5 + 0.9 * (noise(rng, 4, height, width) + 0.5 * noise(rng, 9, height, width))
    elif kind == "sand":
        pattern = 0.5 + 0.8 * noise(rng, min(height, width) // 3, height, width)
    elif kind == "planks":
        pattern = _edges(np.cos(_TURN * many * y))
    elif kind == "fence":
        pattern = _edges(np.cos(_TURN * many * x))
    elif kind == "tiles":
        pattern = _edges(np.cos(_TURN * few * x) * np.cos(_TURN * few * y), 3.0)
    elif kind == "pebbles":
        pattern = _edges(np.cos(_TURN * many * x) + np.cos(_TURN * many * y) - 0.4)
    elif kind == "waves":
        slope = few if rng.random() < 0.5 else -few
        pattern = _edges(np.cos(_TURN * (few * x + slope * y) + 1.2 * np.sin(_TURN * 2 * (x - y))))
    else:
        rows = (many // 2) * 2
        shifted = few * x + 0.5 * (np.floor(rows * y) % 2)
        pattern = 1.0 - np.maximum(
            _edges(np.cos(_TURN * rows * y) - 0.75, 6.0), _edges(np.cos(_TURN * shifted) - 0.9, 6.0)
        )
    first, second = _muted_colours(rng)
    mix = np.clip(pattern, 0.0, 1.0).astype(np.float32)[..., None]
    grain = 8.0 * (rng.random((height, width, 1), dtype=np.float32) - 0.5)
    scene = first + mix * (second - first) + grain
    return np.asarray(np.clip(scene + 0.5, 0, 255), np.uint8)


def noise(rng: np.random.Generator, cells: int, height: int, width: int) -> Array:
    """Return smooth noise [H,W] that wraps around, about ``cells`` bumps across, mean 0, values in about ±0.5."""
    coarse = rng.random((cells, cells), dtype=np.float32) - np.float32(0.5)
    border = 2
    padded = np.pad(coarse, border, mode="wrap")
    step_y, step_x = (-(-side // cells) for side in (height, width))
    total = cells + 2 * border
    smooth = cv2.resize(padded, (total * step_x, total * step_y), interpolation=cv2.INTER_CUBIC)
    tile = smooth[border * step_y : -border * step_y, border * step_x : -border * step_x]
    if tile.shape != (height, width):
        tile = cv2.resize(tile, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(tile, np.float32)


@lru_cache(maxsize=4)
def _grid(height: int, width: int) -> tuple[Array, Array]:
    x = np.arange(width, dtype=np.float32)[None, :] / np.float32(width)
    y = np.arange(height, dtype=np.float32)[:, None] / np.float32(height)
    return x, y


def _edges(wave: npt.NDArray[np.floating], sharpness: float = 2.5) -> npt.NDArray[np.floating]:
    return np.asarray(np.clip(0.5 + sharpness * wave, 0.0, 1.0))


def _muted_colours(rng: np.random.Generator) -> tuple[Array, Array]:
    """Two colours of middle lightness, 35 to 80 grey levels apart, so that bright sprites stand out."""
    draws = rng.random(8).astype(np.float32)
    middle = 95 + 60 * draws[0]
    apart = (35 + 45 * draws[1]) * (1 if draws[7] < 0.5 else -1)
    tint = 40 * (draws[2:5] - 0.5)
    shift = 20 * (draws[4:7] - 0.5)
    return middle + tint - apart / 2, middle + tint + shift + apart / 2
