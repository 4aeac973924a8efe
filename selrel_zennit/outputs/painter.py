"""The colours of relevance: one palette and one scale for all frames of a clip, another for the parts of a margin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .canvas import ACCENT, MUTED, TEXT, Canvas
from .colormaps import palette
from .percentiles import percentiles

Pixels = npt.NDArray[np.uint8]
Scale = tuple[float, float]

NORMS = ("symmetric", "absolute", "unaligned")
PERCENTILE = 99.5


class Split(NamedTuple):
    """The margin of a clip taken apart, to be drawn: both parts [T,H,W], and what they come to in words."""

    static_part: npt.NDArray[np.floating]
    motion_part: npt.NDArray[np.floating]
    headline: str
    details: tuple[str, ...]


def colour_scale(relevance: npt.NDArray[np.floating], norm: str = "symmetric", percentile: float = 100.0) -> Scale:
    """Return the relevance (low, high) at the two ends of the colour map, one pair for everything in ``relevance``.

    ``symmetric``: ±max|R|. ``absolute``: 0…max|R|. ``unaligned``: min R…max R. Below 100, ``percentile`` takes that
    percentile of the non-zero values in place of the maximum, so that a single voxel cannot make a picture black;
    what lies beyond is shown in the end colours. A map of zeros gets a scale of width 1 or more, never 0.

    Raises InputError for another norm.
    """
    return scale_of_parts(lambda: [np.asarray(relevance)], norm, percentile)


def scale_of_parts(
    parts: Callable[[], Iterable[npt.NDArray[np.floating]]], norm: str = "symmetric", percentile: float = 100.0
) -> Scale:
    """Return the ``colour_scale`` of everything in all ``parts()`` together, one of which is in memory at a time."""
    if norm not in NORMS:
        raise InputError(f"relevance norm must be one of {', '.join(NORMS)}, got {norm!r}")
    size = 0

    def values() -> Iterator[npt.NDArray[np.float32]]:
        nonlocal size
        size = 0
        for part in parts():
            size += part.size
            held = np.asarray(part, np.float32)
            nonzero = held[held != 0]
            yield nonzero if norm == "unaligned" else np.abs(nonzero)

    (low, high), count = percentiles(values, (100.0 - percentile, percentile))
    if not count:
        return {"symmetric": (-1.0, 1.0), "absolute": (0.0, 1.0), "unaligned": (0.0, 1.0)}[norm]
    if norm == "unaligned":
        # Zeros count at the ends here: (R - min) / (max - min) is over all voxels.
        low, high = (low, high) if count == size else (min(low, 0.0), max(high, 0.0))
        return (low, high) if high > low else (low, low + max(abs(low), 1.0))
    return (-high if norm == "symmetric" else 0.0, high)


def normalise(
    relevance: npt.NDArray[np.floating], norm: str = "symmetric", scale: Scale | None = None
) -> npt.NDArray[np.float64]:
    """Map relevance [...,T,H,W] to 0…1, the place in the colour map: Zennit's ``--relevance-norm``, per clip.

    Every clip (leading axes) has one scale for all its frames, from its extremes (``colour_scale``), or the one given.
    ``symmetric`` puts zero at 0.5; ``absolute`` maps |R|. Raises InputError for another norm.
    """
    relevance = np.asarray(relevance)
    if relevance.ndim > 3 and scale is None:
        return np.stack([normalise(clip, norm) for clip in relevance])
    low, high = colour_scale(relevance, norm) if scale is None else scale
    values = np.abs(relevance) if norm == "absolute" else relevance
    return np.asarray(np.clip((values.astype(np.float64) - low) / (high - low), 0.0, 1.0))


class Painter:
    """The panels of a clip: one palette and one scale for all its frames and both its maps."""

    def __init__(
        self,
        pixels: Pixels,
        relevance: npt.NDArray[np.floating],
        motion_relevance: npt.NDArray[np.floating],
        cmap: str,
        level: float,
        norm: str,
        scale: Scale | None,
        percentile: float,
    ) -> None:
        for name, value in (("relevance", relevance), ("motion relevance", motion_relevance)):
            if value.shape != pixels.shape[:3]:
                raise InputError(f"{name} must have the frames' shape {pixels.shape[:3]}, got {value.shape}")
        self.pixels = pixels
        self.relevance, self.motion = (np.asarray(values, np.float32) for values in (relevance, motion_relevance))
        self.norm = norm
        self.scale = colour_scale(relevance, norm, percentile) if scale is None else scale
        self.full = max(abs(end) for end in self.scale)
        placed = np.abs(self.relevance) if norm == "absolute" else self.relevance
        outside = (placed < self.scale[0]) | (placed > self.scale[1])
        self.beyond = 100 * float(outside.mean()) if self.relevance.any() else None
        self.palette = palette(cmap, level)
        zero = self.palette[round(255 * float(normalise(np.zeros(()), norm, self.scale)))]
        # A map dark at zero fades into the grey picture by itself; a light one would cover it with haze.
        self.gamma = 0.5 if zero.mean() < 100 else 1.0

    def panels(self, index: int, size: tuple[int, int]) -> tuple[Pixels, Pixels, Pixels]:
        """Return input, relevance and motion relevance of frame ``index``, each uint8 [size[1],size[0],3]."""
        picture = cv2.resize(self.pixels[index], size, interpolation=cv2.INTER_CUBIC)
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
        motion = self.motion[index]
        relevant = self.heat(index, self.relevance, size)
        # The picture stays lit where relevance was kept; the outline, one voxel away, finds single voxels too.
        around = cv2.dilate((motion != 0).astype(np.uint8), np.ones((3, 3), np.uint8))
        around = np.asarray(cv2.resize(around, size, interpolation=cv2.INTER_NEAREST))
        moved = self._heat(grey * np.where(around, 0.9, 0.35)[..., None], motion, size)
        outlines, _ = cv2.findContours(around, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(moved, outlines, -1, ACCENT, 1, cv2.LINE_AA)
        return np.asarray(picture, np.uint8), relevant, moved

    def heat(self, index: int, values: npt.NDArray[np.float32], size: tuple[int, int]) -> Pixels:
        """Return the colours of frame ``index`` of ``values`` [T,H,W] over the dimmed picture."""
        picture = cv2.resize(self.pixels[index], size, interpolation=cv2.INTER_CUBIC)
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
        return self._heat(grey * 0.45, values[index], size)

    def _heat(self, grey: npt.NDArray[np.float32], values: npt.NDArray[np.float32], size: tuple[int, int]) -> Pixels:
        """Blend the colours of ``values`` [H,W] over a grey picture, by |R|."""
        colours = self.palette[np.rint(normalise(values, self.norm, self.scale) * 255).astype(np.uint8)]
        strength = np.minimum(np.abs(values) / self.full, 1.0) ** self.gamma
        # Nearest: a voxel is a voxel; smoothing would invent relevance between them.
        colours = np.asarray(cv2.resize(colours, size, interpolation=cv2.INTER_NEAREST))
        alpha = np.asarray(cv2.resize(strength, size, interpolation=cv2.INTER_NEAREST))[..., None]
        return np.rint(grey * (1 - alpha) + colours * alpha).astype(np.uint8)

    def legend(
        self, canvas: Canvas, x: int, y: int, width: int, name: str | None = None, outlined: bool = True
    ) -> None:
        """Draw the colour bar with its values and say what lies beyond it, and that what is kept is outlined."""
        canvas.text(name or ("|Relevance|" if self.norm == "absolute" else "Relevance"), x, y, 13, MUTED)
        bar = self.palette[np.linspace(0, 255, width).astype(int)]
        canvas.paste(np.broadcast_to(bar, (12, width, 3)), x, y + 12)
        low, high = self.scale
        canvas.text(f"{low:.2g}", x, y + 42, 13, TEXT)
        canvas.text(f"{high:.2g}", x + width, y + 42, 13, TEXT, align="right")
        if low < 0 < high:
            canvas.text("0", x + round(width * -low / (high - low)), y + 42, 13, TEXT, align="centre")
        if self.beyond is None:
            note = "relevance is zero everywhere"
        else:
            note = f"one scale; {self.beyond:.2g}% lie beyond it" if self.beyond else "one scale for all frames"
        canvas.text(note, x, y + 64, 13, MUTED, width=width)
        if outlined:
            canvas.text("outlined: kept as motion", x, y + 84, 13, ACCENT, width=width)

    def mass(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the share of the clip's |R| that each frame holds, and the part of it that was kept, each [T]."""
        total, kept = (np.abs(values).sum((1, 2), dtype=np.float64) for values in (self.relevance, self.motion))
        return total / max(total.sum(), 1e-300), kept / max(total.sum(), 1e-300)


class Parts:
    """The two parts of a margin, static and motion, in the colours of one scale; 0 lies in its middle."""

    def __init__(self, pixels: Pixels, split: Split, cmap: str, level: float) -> None:
        self.split = split
        both = np.stack([split.static_part, split.motion_part])
        scale = colour_scale(both, "symmetric", PERCENTILE)
        self.paint = Painter(pixels, split.static_part, split.motion_part, cmap, level, "symmetric", scale, PERCENTILE)

    def panels(self, index: int, size: tuple[int, int]) -> tuple[Pixels, Pixels]:
        """Return static part and motion part of frame ``index``, each uint8 [size[1],size[0],3]."""
        static, motion = (self.paint.heat(index, values, size) for values in (self.paint.relevance, self.paint.motion))
        return static, motion

    def words(self, canvas: Canvas, x: int, y: int, width: int) -> None:
        """Write what the parts come to."""
        canvas.text("Of the margin over the others, motion is", x, y, 13, MUTED, width=width)
        canvas.text(self.split.headline, x, y + 34, 30, ACCENT, bold=True, width=width)
        for number, line in enumerate(self.split.details):
            canvas.text(line, x, y + 60 + 20 * number, 13, TEXT, width=width)
