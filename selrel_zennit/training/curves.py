"""Loss and accuracy over the epochs, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import atomic_path

# Blue and orange of Okabe and Ito, which colour-blind readers tell apart.
_TRAIN, _VALIDATION = "#0072b2", "#d55e00"


def draw_curves(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the rows of a training's log: loss beside accuracy, on what was learnt and on what was held out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    epochs = [row["epoch"] for row in rows]
    for axes, kind in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        marker = "." if len(rows) < 3 else None
        axes.plot(epochs, [row[kind] for row in rows], color=_TRAIN, label="train", marker=marker)
        held_out = [row[f"validation {kind}"] for row in rows]
        axes.plot(epochs, held_out, color=_VALIDATION, label="held out", marker=marker)
        axes.set(xlabel="epoch", title=kind)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if kind == "accuracy":
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.legend(loc="lower right")
        else:
            axes.set_ylim(bottom=0)
    figure.suptitle(title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
