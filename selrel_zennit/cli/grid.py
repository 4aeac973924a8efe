"""Several methods at once: the grid of `selrel explain --method a,b,c`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..attribution import build_method
from ..errors import InputError
from ..explanation import Explanation, joined
from ..loop import explain_clips
from ..outputs.grid import STEPS, write_grid
from ..outputs.painter import PERCENTILE, Scale, colour_scale, scale_of_parts
from ..pipeline import ModelExplainer
from ..spill import StoredClips
from .selection_options import chosen_selection

GRID = ("grid.png", "grid.pdf", "grid.svg")


def named(methods: str) -> list[str]:
    """Return the methods of a list with commas. Raises InputError for one that is empty, or named twice."""
    names = [name.strip() for name in methods.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise InputError(f"--method takes names with commas between them, each once, got {methods!r}")
    return names


def add_grid(
    folder: Path,
    model: nn.Module,
    first: tuple[str, StoredClips],
    others: list[str],
    settings: dict[str, Any],
    *,
    rows: str,
    width: str,
    cmap: str,
    strict: bool,
) -> dict[str, Any]:
    """Explain the class of the ``first`` by the ``others`` too, write the grid, and return their figures.

    Of a video of many clips the rows over time are those of the clip in which the network was surest.
    """
    name, clips = first
    kept = {name: clips}
    for other in others:
        attributor = build_method(other, model, strict=strict)
        selection, _ = chosen_selection(attributor, settings, None)
        explainer = ModelExplainer(model, attributor, selection=selection)
        again = explain_clips(clips.again, explainer, int(clips.target[0]), frozen=False)
        kept[other] = StoredClips.of(again, folder)
    places = [clips.surest] if rows == "time" else range(min(len(clips), STEPS))
    shown = {method: joined([one[place].explanation for place in places]) for method, one in kept.items()}
    scales = {method: _scale(one, shown[method], rows) for method, one in kept.items()}
    pixels = shown[name].frames
    assert pixels is not None
    write_grid(folder, shown, pixels, rows=rows, width=width, cmap=cmap, scales=scales)
    return {method: _figures(one) for method, one in kept.items()}


def _scale(clips: StoredClips, shown: Explanation, rows: str) -> Scale:
    """Return the colour scale of a method: of the one clip whose time is shown, or of all clips."""
    if rows == "time":
        return colour_scale(shown.relevance, "symmetric", PERCENTILE)
    return scale_of_parts(lambda: clips.explanations.arrays.each("relevance"), "symmetric", PERCENTILE)


def _figures(clips: StoredClips) -> dict[str, Any]:
    found: dict[str, Any] = {"motion_area": [], "motion_mass": [], "relevance_sum": []}
    for clip in clips:
        explanation = clip.explanation
        share = explanation.motion_share()
        for key, value in (("motion_area", share.area[0]), ("motion_mass", share.mass[0])):
            found[key].append(float(value) if np.isfinite(value) else None)
        found["relevance_sum"].append(float(explanation.relevance.sum(dtype=np.float64)))
    return found
