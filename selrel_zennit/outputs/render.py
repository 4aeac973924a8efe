"""Overlays and strips: what the network looked at, and which part of it moved. NumPy and OpenCV alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .canvas import ACCENT, MUTED, SURFACE, TEXT, Canvas, Colour
from .colormaps import palette

Pixels = npt.NDArray[np.uint8]
Scale = tuple[float, float]

NORMS = ("symmetric", "absolute", "unaligned")
PERCENTILE = 99.5
DEFAULT_COLORMAP = "coldnhot"

_MARGIN = 20
_GAP = 10
_RELEVANCE: Colour = (148, 178, 232)
_CAPTIONS = ("Input", "Relevance", "Motion relevance")


def colour_scale(relevance: npt.NDArray[np.floating], norm: str = "symmetric", percentile: float = 100.0) -> Scale:
    """Return the relevance (low, high) at the two ends of the colour map, one pair for everything in ``relevance``.

    ``symmetric``: ±max|R|. ``absolute``: 0…max|R|. ``unaligned``: min R…max R. Below 100, ``percentile`` takes that
    percentile of the non-zero values in place of the maximum, so that a single voxel cannot make a picture black;
    what lies beyond is shown in the end colours. A map of zeros gets a scale of width 1 or more, never 0.

    Raises InputError for another norm.
    """
    if norm not in NORMS:
        raise InputError(f"relevance norm must be one of {', '.join(NORMS)}, got {norm!r}")
    values = np.asarray(relevance, np.float64)
    values = values[values != 0]
    if not values.size:
        return {"symmetric": (-1.0, 1.0), "absolute": (0.0, 1.0), "unaligned": (0.0, 1.0)}[norm]
    if norm == "unaligned":
        # Zeros count at the ends here: (R - min) / (max - min) is over all voxels.
        full = values.size == np.size(relevance)
        low, high = (float(np.percentile(values, q)) for q in (100.0 - percentile, percentile))
        low, high = (low, high) if full else (min(low, 0.0), max(high, 0.0))
        return (low, high) if high > low else (low, low + max(abs(low), 1.0))
    top = float(np.percentile(np.abs(values), percentile))
    return (-top if norm == "symmetric" else 0.0, top)


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


def overlay_frames(
    pixels: Pixels,
    relevance: npt.NDArray[np.floating],
    motion_relevance: npt.NDArray[np.floating],
    *,
    title: str,
    top5: Sequence[tuple[str, float]],
    target_name: str,
    motion_share: tuple[float, float],
    frozen_share: tuple[float, float] | None = None,
    cmap: str = DEFAULT_COLORMAP,
    level: float = 1.0,
    relevance_norm: str = "symmetric",
    scale: Scale | None = None,
    percentile: float = PERCENTILE,
    side: int = 336,
) -> Pixels:
    """Draw the frames of a video: input, relevance and motion relevance side by side.

    ``pixels`` uint8 [T,H,W,3] RGB; ``relevance`` and ``motion_relevance`` [T,H,W]. ``top5`` are (class, probability),
    best first; ``motion_share`` is (area, mass), each 0…1 or NaN, and ``frozen_share`` the same of the clip frozen to
    one frame. ``scale`` is the relevance at the two ends of
    the colour map (``colour_scale``), one for all frames and both maps; by default this clip's own at ``percentile``.
    Give it when several clips make one video. ``side`` is the longer side of a panel in pixels. Returns uint8
    [T,h,w,3] RGB, h and w even.
    Raises InputError for an unknown colour map or norm, or maps of another shape than the pixels.
    """
    paint = Painter(pixels, relevance, motion_relevance, cmap, level, relevance_norm, scale, percentile)
    width, height = _fitted(pixels.shape[2], pixels.shape[1], side)
    column = max(width, 240)
    top, below = 84, 190
    canvas = Canvas(_even(top + height + below), _even(2 * _MARGIN + 3 * column + 2 * _GAP))
    inner = canvas.pixels.shape[1] - 2 * _MARGIN
    lefts = [_MARGIN + number * (column + _GAP) + (column - width) // 2 for number in range(3)]
    _headline(canvas, title, target_name, inner - 120)
    for name, left in zip(_captions(motion_share), lefts, strict=True):
        colour = ACCENT if name.startswith("Motion") else TEXT
        canvas.text(name, left, top - 9, 15, colour, bold=True, width=width)
    bars_top = top + height + 44
    _top5(canvas, top5, target_name, _MARGIN, bars_top, column)
    paint.legend(canvas, lefts[1], bars_top, width)
    chart = (lefts[2], bars_top + 9, width, 72)
    x_of = _curves(canvas, paint, chart)
    canvas.text(_share_text(motion_share), lefts[2], bars_top + 104, 13, ACCENT, width=width)
    if frozen_share is not None:
        text = f"frozen, without motion: {_percent(frozen_share[1])} in {_percent(frozen_share[0])}"
        canvas.text(text, lefts[2], bars_top + 124, 13, MUTED, width=width)

    drawn = []
    for index in range(len(pixels)):
        frame = Canvas.copy_of(canvas)
        for left, picture in zip(lefts, paint.panels(index, (width, height)), strict=True):
            frame.paste(picture, left, top)
        _progress(frame, index, len(pixels), lefts[0], top + height + 8, lefts[2] + width - lefts[0])
        frame.fill(round(x_of(index)), chart[1], 1, chart[3], TEXT)
        drawn.append(frame.pixels)
    return np.stack(drawn)


def strip_image(
    pixels: Pixels,
    relevance: npt.NDArray[np.floating],
    motion_relevance: npt.NDArray[np.floating],
    *,
    title: str,
    top5: Sequence[tuple[str, float]],
    target_name: str,
    motion_share: tuple[float, float],
    frozen_share: tuple[float, float] | None = None,
    cmap: str = DEFAULT_COLORMAP,
    level: float = 1.0,
    relevance_norm: str = "symmetric",
    scale: Scale | None = None,
    percentile: float = PERCENTILE,
    columns: int = 8,
) -> Pixels:
    """Draw one picture of a clip: time from left to right, input, relevance and motion relevance below each other.

    Arguments as for ``overlay_frames``; at most ``columns`` time steps, evenly spaced. Returns uint8 [h,w,3] RGB.
    """
    paint = Painter(pixels, relevance, motion_relevance, cmap, level, relevance_norm, scale, percentile)
    count = len(pixels)
    steps = np.rint(np.linspace(0, count - 1, min(columns, count))).astype(int)
    gap, chart_height = 4, 78
    tile, tile_height = _fitted(
        pixels.shape[2], pixels.shape[1], min(220, (1000 - gap * (len(steps) - 1)) // len(steps))
    )
    across = len(steps) * (tile + gap) - gap
    side, right = 240, 32
    top, row = 84, tile_height + 30
    canvas = Canvas(_even(top + 3 * row + chart_height + 52), _even(2 * _MARGIN + max(across, 440) + right + side))
    _headline(canvas, title, target_name, canvas.pixels.shape[1] - 2 * _MARGIN)
    for number, name in enumerate(_CAPTIONS):
        canvas.text(name, _MARGIN, top + number * row - 8, 15, ACCENT if number == 2 else TEXT, bold=True)
    for place, step in enumerate(steps):
        left = _MARGIN + place * (tile + gap)
        if place or tile > 90:
            canvas.text(str(step + 1), left + tile, top - 8, 13, MUTED, align="right")
        for number, picture in enumerate(paint.panels(int(step), (tile, tile_height))):
            canvas.paste(picture, left, top + number * row)
    # The curve's time axis is the tiles' own: each point stands below the middle of its tile.
    chart_top = top + 3 * row + 4
    chart = (_MARGIN + tile // 2, chart_top, across - tile, chart_height)
    x_of = _curves(canvas, paint, chart)
    for step in steps:
        canvas.text(str(step + 1), round(x_of(int(step))), chart_top + chart_height + 18, 13, MUTED, align="centre")
    canvas.text("frame", _MARGIN, chart_top + chart_height + 18, 13, MUTED, width=max(tile // 2 - 12, 40))
    left = canvas.pixels.shape[1] - _MARGIN - side
    _top5(canvas, top5, target_name, left, top - 8, side)
    paint.legend(canvas, left, top + row + 14, side)
    canvas.text("Motion relevance", left, top + 2 * row + 14, 13, MUTED)
    canvas.text(_percent(motion_share[1]), left, top + 2 * row + 52, 34, ACCENT, bold=True)
    canvas.text("of all |relevance|, in", left, top + 2 * row + 76, 13, TEXT)
    canvas.text(f"{_percent(motion_share[0])} of relevant voxels", left, top + 2 * row + 96, 13, TEXT)
    if frozen_share is not None:
        canvas.text("The same clip, frozen", left, top + 2 * row + 132, 13, MUTED)
        text = f"{_percent(frozen_share[1])} in {_percent(frozen_share[0])} of them"
        canvas.text(text, left, top + 2 * row + 152, 13, TEXT)
    return canvas.pixels


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
        relevant = self._heat(grey * 0.45, self.relevance[index], size)
        # The picture stays lit where relevance was kept; the outline, one voxel away, finds single voxels too.
        around = cv2.dilate((motion != 0).astype(np.uint8), np.ones((3, 3), np.uint8))
        around = np.asarray(cv2.resize(around, size, interpolation=cv2.INTER_NEAREST))
        moved = self._heat(grey * np.where(around, 0.9, 0.35)[..., None], motion, size)
        outlines, _ = cv2.findContours(around, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(moved, outlines, -1, ACCENT, 1, cv2.LINE_AA)
        return np.asarray(picture, np.uint8), relevant, moved

    def _heat(self, grey: npt.NDArray[np.float32], values: npt.NDArray[np.float32], size: tuple[int, int]) -> Pixels:
        """Blend the colours of ``values`` [H,W] over a grey picture, by |R|."""
        colours = self.palette[np.rint(normalise(values, self.norm, self.scale) * 255).astype(np.uint8)]
        strength = np.minimum(np.abs(values) / self.full, 1.0) ** self.gamma
        # Nearest: a voxel is a voxel; smoothing would invent relevance between them.
        colours = np.asarray(cv2.resize(colours, size, interpolation=cv2.INTER_NEAREST))
        alpha = np.asarray(cv2.resize(strength, size, interpolation=cv2.INTER_NEAREST))[..., None]
        return np.rint(grey * (1 - alpha) + colours * alpha).astype(np.uint8)

    def legend(self, canvas: Canvas, x: int, y: int, width: int) -> None:
        """Draw the colour bar with its values and say what lies beyond it."""
        canvas.text("|Relevance|" if self.norm == "absolute" else "Relevance", x, y, 13, MUTED)
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
        canvas.text("outlined: kept as motion", x, y + 84, 13, ACCENT, width=width)

    def mass(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the share of the clip's |R| that each frame holds, and the part of it that was kept, each [T]."""
        total, kept = (np.abs(values).sum((1, 2), dtype=np.float64) for values in (self.relevance, self.motion))
        return total / max(total.sum(), 1e-300), kept / max(total.sum(), 1e-300)


def _headline(canvas: Canvas, title: str, target_name: str, width: int) -> None:
    advance = canvas.text(f"Why {target_name}?", _MARGIN, 38, 24, TEXT, bold=True, width=width)
    if width - advance > 120:
        canvas.text(title, _MARGIN + advance + 16, 38, 15, MUTED, width=width - advance - 16)


def _captions(motion_share: tuple[float, float]) -> tuple[str, str, str]:
    return _CAPTIONS[0], _CAPTIONS[1], f"{_CAPTIONS[2]}: {_percent(motion_share[1])} of all"


def _percent(share: float) -> str:
    if not np.isfinite(share):
        return "n/a"
    return f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"


def _top5(canvas: Canvas, top5: Sequence[tuple[str, float]], target_name: str, x: int, y: int, width: int) -> None:
    """Draw the classes with a bar each; the class explained stands out."""
    canvas.text("The network's top classes", x, y, 13, MUTED, width=width)
    for place, (name, probability) in enumerate(top5[:5]):
        line, chosen = y + 23 + 25 * place, name == target_name
        canvas.text(name, x, line, 14, TEXT if chosen else MUTED, bold=chosen, width=width - 56)
        canvas.text(f"{probability:.1%}", x + width, line, 14, TEXT if chosen else MUTED, bold=chosen, align="right")
        canvas.fill(x, line + 5, width, 4, SURFACE)
        canvas.fill(x, line + 5, round(width * min(max(probability, 0.0), 1.0)), 4, _RELEVANCE if chosen else MUTED)


def _curves(canvas: Canvas, paint: Painter, chart: tuple[int, int, int, int]) -> Callable[[int], float]:
    """Draw relevance per frame and the part kept in a box (x, y, width, height); return a frame's x position."""
    x, y, width, height = chart
    count = len(paint.pixels)

    def x_of(index: int) -> float:
        return x + width * index / max(count - 1, 1)

    total, kept = paint.mass()
    peak = max(float(total.max()), 1e-300)
    advance = canvas.text("|Relevance| per frame:", x, y - 9, 13, MUTED) + 7
    advance += canvas.text("all", x + advance, y - 9, 13, _RELEVANCE, bold=True) + 10
    canvas.text("motion", x + advance, y - 9, 13, ACCENT, bold=True)
    canvas.fill(x, y, width, height, SURFACE)
    for values, colour in ((total, _RELEVANCE), (kept, ACCENT)):
        canvas.line(
            [(x_of(i), y + height - 3 - (height - 8) * float(v) / peak) for i, v in enumerate(values)], colour, 2
        )
    return x_of


def _share_text(motion_share: tuple[float, float]) -> str:
    area, mass = motion_share
    return f"kept: {_percent(mass)} of |R| in {_percent(area)} of relevant voxels"


def _progress(canvas: Canvas, index: int, count: int, x: int, y: int, width: int) -> None:
    label = f"frame {index + 1}/{count}"
    canvas.fill(x, y, width, 4, SURFACE)
    canvas.fill(x, y, round(width * (index + 1) / count), 4, MUTED)
    canvas.text(label, x + width, 38, 15, MUTED, align="right")


def _fitted(width: int, height: int, side: int) -> tuple[int, int]:
    factor = side / max(width, height)
    return max(round(width * factor), 1), max(round(height * factor), 1)


def _even(length: int) -> int:
    # H.264 with 4:2:0 colour wants even sizes.
    return length + length % 2
