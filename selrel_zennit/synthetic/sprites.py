"""Sprites: a shape and a texture drawn afresh, and where they lie in a frame that wraps around."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from ..clips.spec import Frames
from .motion import Array
from .scenes import noise

# Share of a sprite's radius, at its rim, that is painted dark.
_RIM = 0.1
# Empty pixels around the shape on its canvas, so that resampling never meets the canvas's edge.
_MARGIN = 3


@dataclass(frozen=True, eq=False)
class Sprite:
    """A picture to be moved: uint8 [S,S,4], red, green, blue and opacity, and the radius in its own pixels."""

    canvas: npt.NDArray[np.uint8]
    radius: float

    def place(self, pose: Array, height: int, width: int) -> Placed:
        """Return the sprite at a pose (x, y, angle, radius), resampled to the frame's pixels."""
        x, y, angle, radius = (float(value) for value in pose)
        reach = int(np.ceil(radius)) + 1
        left, top = int(np.floor(x)) - reach, int(np.floor(y)) - reach
        side = 2 * reach + 2
        scale = self.radius / radius
        centre = (self.canvas.shape[0] - 1) / 2
        cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
        dx, dy = left - x, top - y
        inverse = np.array(
            [
                [cosine, sine, centre + cosine * dx + sine * dy],
                [-sine, cosine, centre - sine * dx + cosine * dy],
            ]
        )
        pixels = cv2.warpAffine(
            self.canvas, inverse, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderValue=(0, 0, 0, 0)
        )
        rows, columns = np.arange(top, top + side), np.arange(left, left + side)
        return Placed(np.asarray(pixels, np.uint8), rows, columns, np.ix_(rows % height, columns % width))


@dataclass(frozen=True, eq=False)
class Placed:
    """A sprite in one frame: its pixels [S,S,4], their rows and columns before wrapping, and the wrapped index."""

    pixels: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    index: tuple[npt.NDArray[np.int64], ...]

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Where the sprite covers at least half of a pixel, bool [S,S]."""
        return np.asarray(self.pixels[..., 3] >= 128)

    def paint(self, frame: Frames) -> None:
        """Lay the sprite over a frame uint8 [H,W,3], in place."""
        opacity = self.pixels[..., 3:].astype(np.uint16)
        mixed = frame[self.index] * (255 - opacity) + self.pixels[..., :3] * opacity + np.uint16(128)
        frame[self.index] = (mixed + (mixed >> 8)) >> 8  # divided by 255 and rounded, exactly


def draw_sprite(rng: np.random.Generator, largest_radius: float) -> Sprite:
    """Return a sprite with a random outline and a random two-coloured texture, drawn at its largest radius."""
    radius = int(np.ceil(largest_radius))
    distance, angle = _polar(radius)
    amplitudes, phases = 0.06 + 0.1 * rng.random(4), 2 * np.pi * rng.random(4)
    outline = np.ones_like(angle)
    for order, (amplitude, phase) in enumerate(zip(amplitudes, phases, strict=True), start=2):
        outline += (amplitude * np.cos(order * angle + phase)).astype(np.float32)
    outline *= np.float32(radius / outline.max())
    inside = np.clip(outline - distance + np.float32(0.5), 0.0, 1.0)
    rim = np.clip(outline - distance - np.float32(_RIM * radius) + np.float32(0.5), 0.0, 1.0)[..., None]

    side = distance.shape[0]
    texture = noise(rng, 5, side, side)
    mix = np.clip(0.5 + 6.0 * (texture - np.median(texture)), 0.0, 1.0)[..., None].astype(np.float32)
    hue, distant, dark = rng.random(3)
    bright, deep = _colour(hue, 0.85, 245.0), _colour(hue + 0.3 + 0.4 * distant, 0.9, 60.0 + 60.0 * dark)
    colour = (deep + mix * (bright - deep)) * rim + np.float32(15.0) * (1 - rim)
    canvas = np.concatenate([colour, 255.0 * inside[..., None]], axis=2)
    return Sprite(np.asarray(canvas + 0.5, np.uint8), float(radius))


@lru_cache(maxsize=4)
def _polar(radius: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    steps = np.arange(-radius - _MARGIN, radius + _MARGIN + 1, dtype=np.float32)
    x, y = steps[None, :], steps[:, None]
    return np.hypot(x, y), np.arctan2(y, x)


def _colour(hue: float, saturation: float, value: float) -> npt.NDArray[np.float32]:
    """Hue in turns, saturation 0 to 1, value 0 to 255 → red, green, blue."""
    wheel = np.abs((hue + np.array([1.0, 2 / 3, 1 / 3])) % 1.0 * 6.0 - 3.0) - 1.0
    return np.asarray(value * (1.0 - saturation * (1.0 - np.clip(wheel, 0.0, 1.0))), np.float32)
