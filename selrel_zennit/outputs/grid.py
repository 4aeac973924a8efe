"""The grid of a paper's figure: input, each method, and what the selection keeps of it, over time or over clips.

After figure 3 of Hiley et al. 2020. Matplotlib; text stays text in PDF and SVG.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..clips.video import Frames
from ..errors import InputError
from ..explanation import Explanation
from ..files import atomic_path
from .colormaps import palette
from .painter import PERCENTILE, Scale, colour_scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = {"single": 3.5, "double": 7.16}
"""Inches: one and two columns of a journal's page."""
ROWS = ("time", "clips")
STEPS = 4
"""Rows of a grid, at most."""
_DPI = 600
_LEAST_COLUMN = 0.32
_SELECTIVE = "selective"


def grid_figure(
    explanations: Mapping[str, Explanation],
    frames: Frames,
    *,
    rows: str = "time",
    width: str = "double",
    steps: int = STEPS,
    cmap: str = "coldnhot",
    scales: Mapping[str, Scale] | None = None,
) -> Figure:
    """Draw explanations of the same clips, by the names of their methods: a figure of Matplotlib.

    ``frames`` uint8 [B,T,H,W,3] RGB. Columns: input, then each method and what its selection keeps, both on one scale,
    the method's own: ± the 99.5th percentile of its non-zero |R| over all clips, as the figure says. Rows: ``steps``
    time steps of the first clip, evenly spaced, or the middle frame of each of at most ``steps`` clips. ``width`` is a
    journal's column: single (3.5 in) or double (7.16 in). ``scales`` are those of the methods, where there are more
    clips than are given here.

    Raises InputError for another ``rows`` or ``width``, maps of other shapes than the frames, and too many methods for
    the width.
    """
    from matplotlib import cm, colors
    from matplotlib.figure import Figure

    if rows not in ROWS or width not in WIDTHS:
        raise InputError(f"a grid has rows time or clips and the width single or double, got {rows!r} and {width!r}")
    if not explanations or steps < 1:
        raise InputError("a grid needs at least one method and one row")
    for name, one in explanations.items():
        if one.relevance.shape != frames.shape[:4]:
            raise InputError(f"{name} explains clips {one.relevance.shape}, the frames are {frames.shape[:4]}")
    across, columns = WIDTHS[width], 1 + 2 * len(explanations)
    ends = {name: colour_scale(one.relevance, "symmetric", PERCENTILE) for name, one in explanations.items()}
    ends |= scales or {}
    left, right, gap = 0.34, 0.04, 0.03
    tile = (across - left - right - gap * (columns - 1)) / columns
    if tile < _LEAST_COLUMN:
        raise InputError(f"{len(explanations)} methods are too many for a {width} column: take double, or fewer")
    clips, times, height, wide = frames.shape[:4]
    if rows == "time":
        places = [(0, int(step)) for step in np.unique(np.rint(np.linspace(0, times - 1, min(steps, times))))]
        labels = [f"{step + 1}" for _, step in places]
    else:
        places = [(clip, times // 2) for clip in range(min(steps, clips))]
        labels = [f"{clip + 1}" for clip, _ in places]
    lines = max(_wrapped(name, 2 * tile + gap).count("\n") for name in explanations)
    tall, top, bottom = tile * height / wide, 0.34 + 0.12 * lines, 0.46
    full = top + len(places) * (tall + gap) - gap + bottom
    figure = Figure(figsize=(across, full))
    colour_map = colors.ListedColormap(palette(cmap) / 255.0)
    # Narrow columns: a name of two words takes two lines.
    size = 7.0

    def axes(column: int, row: int) -> tuple[float, float, float, float]:
        x, y = left + column * (tile + gap), full - top - row * (tall + gap) - tall
        return x / across, y / full, tile / across, tall / full

    for row, (clip, step) in enumerate(places):
        pictures: list[tuple[Any, Scale | None]] = [(frames[clip, step], None)]
        for name, one in explanations.items():
            pictures += [(one.relevance[clip, step], ends[name]), (one.motion_relevance[clip, step], ends[name])]
        for column, (picture, scale) in enumerate(pictures):
            shown = figure.add_axes(axes(column, row))
            shown.set_axis_off()
            if scale is None:
                shown.imshow(picture, interpolation="none", aspect="auto")
            else:
                shown.imshow(
                    picture, cmap=colour_map, vmin=scale[0], vmax=scale[1], interpolation="none", aspect="auto"
                )
        middle = axes(0, row)
        figure.text((left - 0.05) / across, middle[1] + middle[3] / 2, labels[row], ha="right", va="center", size=size)
    heads = full - 0.04
    figure.text(0.04 / across, heads / full, "frame" if rows == "time" else "clip", va="top", size=size)
    figure.text((left + tile / 2) / across, (full - top + 0.04) / full, "input", ha="center", va="bottom", size=size)
    for number, name in enumerate(explanations):
        first, last = axes(1 + 2 * number, 0), axes(2 + 2 * number, len(places) - 1)
        centre = (first[0] + last[0] + last[2]) / 2
        pair = 2 * tile + gap
        words = _wrapped(name, pair)
        figure.text(centre, heads / full, words, ha="center", va="top", size=size, linespacing=1.0)
        under = (full - top + 0.04) / full
        # The first of a pair is the whole map: its heading would repeat the method's name.
        for place, text in ((first[0], "all"), (last[0], _SELECTIVE if tile > 0.44 else "motion")):
            figure.text(place + first[2] / 2, under, text, ha="center", va="bottom", size=size)
        bar = figure.add_axes((first[0], (bottom - 0.12) / full, pair / across, 0.06 / full))
        norm = colors.Normalize(*ends[name])
        drawn = figure.colorbar(cm.ScalarMappable(norm, colour_map), cax=bar, orientation="horizontal")
        drawn.outline.set_linewidth(0.3)
        drawn.set_ticks([])
        top_value = f"{ends[name][1]:.1e}".replace("e-0", "e-").replace("e+0", "e")
        figure.text(centre, (bottom - 0.14) / full, f"±{top_value}".replace("-", "−"), ha="center", va="top", size=size)
    rule = "Colour: relevance; each method ± the 99.5th percentile of its |R|."
    if width == "single":
        rule = "Colour: ± 99.5th percentile of each method's |R|."
    figure.text(0.04 / across, 0.03 / full, rule, va="bottom", size=size)
    return figure


def _wrapped(name: str, inches: float) -> str:
    """Break a method's name at underscores into lines that fit; a letter of 7 points is about 0.055 inches wide."""
    lines: list[str] = []
    for word in name.split("_"):
        if lines and (len(lines[-1]) + 1 + len(word)) * 0.055 <= inches:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def write_grid(
    folder: Path,
    explanations: Mapping[str, Explanation],
    frames: Frames,
    *,
    rows: str = "time",
    width: str = "double",
    cmap: str = "coldnhot",
    scales: Mapping[str, Scale] | None = None,
) -> list[str]:
    """Write grid.png (600 dots per inch), grid.pdf and grid.svg; return their names. Errors as for grid_figure."""
    import matplotlib

    names = ["grid.png", "grid.pdf", "grid.svg"]
    # Text is text, in a font that a journal takes (TrueType, not Type 3), and the same figure is the same file.
    settings: Any = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "selrel", "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(settings):
        figure = grid_figure(explanations, frames, rows=rows, width=width, cmap=cmap, scales=scales)
        for name in names:
            dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
            with atomic_path(folder / name) as path:
                figure.savefig(path, dpi=_DPI, metadata=dates.get(name[-3:]))
    return names
