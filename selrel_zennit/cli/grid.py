"""Several methods at once: the grid of `selrel explain --method a,b,c`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..attribution import build_method
from ..errors import InputError
from ..explanation import ClipExplanations, Explanation
from ..outputs.grid import write_grid
from ..pipeline import explain_video
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
    source: Any,
    first: tuple[str, ClipExplanations],
    others: list[str],
    settings: dict[str, Any],
    *,
    rows: str,
    width: str,
    cmap: str,
    strict: bool,
    **given: Any,
) -> dict[str, Any]:
    """Explain the class of the ``first`` by the ``others`` too, write the grid, and return their figures.

    ``given`` are what explain_video takes. Of a video of many clips the rows over time are those of the clip in which
    the network was surest.
    """
    name, clips = first
    target = int(clips.explanation.target[0])
    found: dict[str, Explanation] = {name: clips.explanation}
    for other in others:
        attributor = build_method(other, model, strict=strict)
        selection, _ = chosen_selection(attributor, settings, None)
        made = explain_video(model, source, attributor, target, selection=selection, frozen=False, **given)
        found[other] = made.explanation
    surest = int(np.argmax(clips.explanation.logits[:, target]))
    shown, pixels = found, clips.pixels
    if rows == "time":
        shown = {method: one[surest] for method, one in found.items()}
        pixels = clips.pixels[surest : surest + 1]
    write_grid(folder, shown, pixels, rows=rows, width=width, cmap=cmap)
    return {method: _figures(one) for method, one in found.items()}


def _figures(explanation: Explanation) -> dict[str, Any]:
    share = explanation.motion_share()

    def number(values: Any) -> list[float | None]:
        return [float(value) if np.isfinite(value) else None for value in values]

    sums = explanation.relevance.sum((1, 2, 3), dtype=np.float64)
    return {"motion_area": number(share.area), "motion_mass": number(share.mass), "relevance_sum": sums.tolist()}
