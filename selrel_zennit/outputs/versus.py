"""The two files of ``--versus``: versus.png and versus.npz. NumPy and OpenCV alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..class_names import class_name
from ..clips.video import write_png
from ..comparison import Versus, cosine, mask_iou
from ..explanation import ClipExplanations, ExplainedClip
from ..spill import StoredArrays, StoredClips
from .canvas import ACCENT, MUTED, TEXT, Canvas
from .files import Style
from .painter import PERCENTILE, Painter, Pixels, Scale, colour_scale

_MARGIN, _TOP, _GAP, _TILE, _SIDE, _COLUMNS = 20, 84, 4, 122, 240, 8


def write_versus(
    folder: Path,
    clips: StoredClips | ClipExplanations,
    other: Iterable[ExplainedClip],
    *,
    names: Sequence[str] | None = None,
    title: str,
    style: Style | None = None,
) -> dict[str, Any]:
    """Write versus.png and versus.npz into ``folder``, and return what the summary says of them.

    ``clips`` are the explanations of class A and ``other`` those of class B, of the same clips, one at a time;
    ``names`` are what the network's classes are called. The picture shows the clip in which the network was surest of
    A. The arrays are relevance, motion_relevance, mask and target of B, and ``difference`` and ``motion_difference`` as
    Versus defines them.

    Returns target, target_name, and for every clip start, distance, cosine, motion_cosine and mask_iou (null where not
    defined). Raises as Versus does.
    """
    arrays, found, target_name = StoredArrays(folder), [], ""
    shown = int(np.argmax(clips.logits[:, clips.target[0]]))
    for index, (clip, against) in enumerate(zip(clips, other, strict=True)):
        pair = Versus(clip.explanation, against.explanation)
        values = {
            "distance": pair.distance,
            "cosine": cosine(pair.first.relevance, pair.second.relevance),
            "motion_cosine": cosine(pair.first.motion_relevance, pair.second.motion_relevance),
            "mask_iou": mask_iou(pair.first.mask, pair.second.mask),
        }
        found.append({"start": clip.start, **{name: _number(value[0]) for name, value in values.items()}})
        fields = {name: getattr(pair.second, name) for name in ("relevance", "motion_relevance", "mask", "target")}
        arrays.append({**fields, "difference": pair.difference, "motion_difference": pair.motion_difference})
        if index == shown:
            first, second = (class_name(int(one.target[0]), names) for one in (pair.first, pair.second))
            assert pair.first.frames is not None
            picture = versus_image(pair.first.frames[0], pair, 0, names=(first, second), title=title, style=style)
            write_png(folder / "versus.png", picture)
            target, target_name = int(pair.second.target[0]), second
    arrays.save(folder / "versus.npz")
    return {"target": target, "target_name": target_name, "clips": found}


def versus_image(
    pixels: Pixels, pair: Versus, index: int, *, names: tuple[str, str], title: str, style: Style | None = None
) -> Pixels:
    """Draw clip ``index`` of a pair: time from left to right, input, A, B, A − B, and A − B of the motion relevance.

    Every map is divided by its Σ|R|; A and B share one scale. The differences are drawn with zero in the middle of the
    colour map, whatever the style's norm: one end is A, the other B. Returns uint8 [h,w,3] RGB.
    """
    style = style or Style()
    maps = [pair.unit(one, "relevance")[index] for one in (pair.first, pair.second)]
    scale = colour_scale(np.stack(maps), style.relevance_norm, PERCENTILE)
    a, b = (_painter(pixels, one, one, style, style.relevance_norm, scale) for one in maps)
    differences = pair.difference[index], pair.motion_difference[index]
    less = _painter(pixels, *differences, style, "symmetric", None)

    steps = np.rint(np.linspace(0, len(pixels) - 1, min(_COLUMNS, len(pixels)))).astype(int)
    height = max(round(_TILE * pixels.shape[1] / pixels.shape[2]), 1)
    row, across = height + 30, len(steps) * (_TILE + _GAP) - _GAP
    canvas = Canvas(_TOP + 5 * row, 2 * _MARGIN + max(across, 440) + 32 + _SIDE, style.theme)
    advance = canvas.text(f"{names[0]} or {names[1]}?", _MARGIN, 38, 24, TEXT, bold=True)
    canvas.text(title, _MARGIN + advance + 16, 38, 15, MUTED, width=canvas.pixels.shape[1] - 2 * _MARGIN - advance - 16)
    labels = ("Input", names[0], names[1], f"{names[0]} − {names[1]}", "The same, of the motion relevance")
    for number, label in enumerate(labels):
        canvas.text(label, _MARGIN, _TOP + number * row - 8, 15, ACCENT if number == 4 else TEXT, bold=True)
    for place, step in enumerate(steps.tolist()):
        picture, first, _ = a.panels(step, (_TILE, height))
        _, second, _ = b.panels(step, (_TILE, height))
        _, difference, motion = less.panels(step, (_TILE, height))
        for number, panel in enumerate((picture, first, second, difference, motion)):
            canvas.paste(panel, _MARGIN + place * (_TILE + _GAP), _TOP + number * row)
    left = canvas.pixels.shape[1] - _MARGIN - _SIDE
    a.legend(canvas, left, _TOP + row, _SIDE)
    less.legend(canvas, left, _TOP + 3 * row, _SIDE)
    distance = f"{pair.distance[index]:.0%}" if np.isfinite(pair.distance[index]) else "n/a"
    canvas.text("Distance of the two maps", left, _TOP + 4 * row + 14, 13, MUTED)
    canvas.text(distance, left, _TOP + 4 * row + 52, 34, ACCENT, bold=True)
    canvas.text("0 %: the same map", left, _TOP + 4 * row + 76, 13, TEXT)
    canvas.text("100 %: nothing in common", left, _TOP + 4 * row + 96, 13, TEXT)
    return canvas.pixels


def _painter(
    pixels: Pixels,
    relevance: npt.NDArray[np.float32],
    motion: npt.NDArray[np.float32],
    style: Style,
    norm: str,
    scale: Scale | None,
) -> Painter:
    return Painter(pixels, relevance, motion, style.cmap, style.level, norm, scale, PERCENTILE)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
