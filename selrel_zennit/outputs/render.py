"""Overlays and strips: what the network looked at, and which part of it moved. NumPy and OpenCV alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .canvas import ACCENT, MUTED, SERIES, SURFACE, TEXT, Canvas
from .painter import PERCENTILE, Painter, Parts, Pixels, Scale, Split

DEFAULT_COLORMAP = "coldnhot"

_MARGIN = 20
_GAP = 10
_CAPTIONS = ("Input", "Relevance", "Motion relevance")
_SPLIT_CAPTIONS = ("Input", "Static part", "Motion part", "Motion relevance")


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
    theme: str = "dark",
    scale: Scale | None = None,
    percentile: float = PERCENTILE,
    split: Split | None = None,
    side: int = 336,
) -> Pixels:
    """Draw the frames of a video: input, relevance and motion relevance side by side.

    With ``split``, input, static part, motion part and the motion relevance of the selection.

    ``pixels`` uint8 [T,H,W,3] RGB; ``relevance`` and ``motion_relevance`` [T,H,W]. ``top5`` are (class, probability),
    best first; ``motion_share`` is (area, mass), each 0…1 or NaN, and ``frozen_share`` the same of the clip frozen to
    one frame. ``scale`` is the relevance at the two ends of
    the colour map (``colour_scale``), one for all frames and both maps; by default this clip's own at ``percentile``.
    Give it when several clips make one video. ``side`` is the longer side of a panel in pixels. Returns uint8
    [T,h,w,3] RGB, h and w even.
    Raises InputError for an unknown colour map, norm or theme (``canvas.THEMES``), or maps of another shape.
    """
    paint = Painter(pixels, relevance, motion_relevance, cmap, level, relevance_norm, scale, percentile)
    width, height = _fitted(pixels.shape[2], pixels.shape[1], side)
    column = max(width, 240)
    top, below = 84, 190
    columns = 3 if split is None else 4
    canvas = Canvas(_even(top + height + below), _even(2 * _MARGIN + columns * column + (columns - 1) * _GAP), theme)
    inner = canvas.pixels.shape[1] - 2 * _MARGIN
    lefts = [_MARGIN + number * (column + _GAP) + (column - width) // 2 for number in range(columns)]
    _headline(canvas, title, target_name, inner - 120)
    captions: tuple[str, ...] = _captions(motion_share)
    parts = None
    if split is not None:
        captions = (*_SPLIT_CAPTIONS[:3], captions[2])
        parts = Parts(pixels, split, cmap, level)
    for name, left in zip(captions, lefts, strict=True):
        colour = ACCENT if name.startswith("Motion") else TEXT
        canvas.text(name, left, top - 9, 15, colour, bold=True, width=width)
    bars_top = top + height + 44
    _top5(canvas, top5, target_name, _MARGIN, bars_top, column)
    if parts is None:
        paint.legend(canvas, lefts[1], bars_top, width)
    else:
        parts.paint.legend(canvas, lefts[1], bars_top, width, "Part of the margin", outlined=False)
        parts.words(canvas, lefts[2], bars_top, width)
    chart = (lefts[-1], bars_top + 9, width, 72)
    x_of = _curves(canvas, paint, chart)
    canvas.text(_share_text(motion_share), lefts[-1], bars_top + 104, 13, ACCENT, width=width)
    if frozen_share is not None:
        text = f"frozen, without motion: {_percent(frozen_share[1])} in {_percent(frozen_share[0])}"
        canvas.text(text, lefts[-1], bars_top + 124, 13, MUTED, width=width)

    drawn = []
    for index in range(len(pixels)):
        frame = Canvas.copy_of(canvas)
        panels: tuple[Pixels, ...] = paint.panels(index, (width, height))
        if parts is not None:
            panels = (panels[0], *parts.panels(index, (width, height)), panels[2])
        for left, picture in zip(lefts, panels, strict=True):
            frame.paste(picture, left, top)
        _progress(frame, index, len(pixels), lefts[0], top + height + 8, lefts[-1] + width - lefts[0])
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
    theme: str = "dark",
    scale: Scale | None = None,
    percentile: float = PERCENTILE,
    split: Split | None = None,
    columns: int = 8,
) -> Pixels:
    """Draw one picture of a clip: time from left to right, input, relevance and motion relevance below each other.

    With ``split`` static part and motion part follow, on a scale of their own. Arguments as for ``overlay_frames``; at
    most ``columns`` time steps, evenly spaced. Returns uint8 [h,w,3] RGB.
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
    parts = None if split is None else Parts(pixels, split, cmap, level)
    captions = _CAPTIONS if split is None else (*_CAPTIONS, *_SPLIT_CAPTIONS[1:3])
    # The curves stand below the selection's row; the parts of the margin come last.
    parts_top = top + 3 * row + chart_height + 60
    bottom = parts_top - 8 if split is None else parts_top + 2 * row - 12
    canvas = Canvas(_even(bottom), _even(2 * _MARGIN + max(across, 440) + right + side), theme)
    _headline(canvas, title, target_name, canvas.pixels.shape[1] - 2 * _MARGIN)
    rows = [top + number * row for number in range(3)] + [parts_top, parts_top + row]
    for number, (name, at) in enumerate(zip(captions, rows, strict=False)):
        canvas.text(name, _MARGIN, at - 8, 15, ACCENT if number in (2, 4) else TEXT, bold=True)
    for place, step in enumerate(steps):
        left = _MARGIN + place * (tile + gap)
        if place or tile > 90:
            canvas.text(str(step + 1), left + tile, top - 8, 13, MUTED, align="right")
        pictures: tuple[Pixels, ...] = paint.panels(int(step), (tile, tile_height))
        if parts is not None:
            pictures = (*pictures, *parts.panels(int(step), (tile, tile_height)))
        for picture, at in zip(pictures, rows, strict=False):
            canvas.paste(picture, left, at)
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
    if parts is not None:
        parts.paint.legend(canvas, left, parts_top + 14, side, "Part of the margin", outlined=False)
        parts.words(canvas, left, parts_top + row + 14, side)
    return canvas.pixels


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
        canvas.fill(x, line + 5, round(width * min(max(probability, 0.0), 1.0)), 4, SERIES if chosen else MUTED)


def _curves(canvas: Canvas, paint: Painter, chart: tuple[int, int, int, int]) -> Callable[[int], float]:
    """Draw relevance per frame and the part kept in a box (x, y, width, height); return a frame's x position."""
    x, y, width, height = chart
    count = len(paint.pixels)

    def x_of(index: int) -> float:
        return x + width * index / max(count - 1, 1)

    total, kept = paint.mass()
    peak = max(float(total.max()), 1e-300)
    advance = canvas.text("|Relevance| per frame:", x, y - 9, 13, MUTED) + 7
    advance += canvas.text("all", x + advance, y - 9, 13, SERIES, bold=True) + 10
    canvas.text("motion", x + advance, y - 9, 13, ACCENT, bold=True)
    canvas.fill(x, y, width, height, SURFACE)
    for values, colour in ((total, SERIES), (kept, ACCENT)):
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
