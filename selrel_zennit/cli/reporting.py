"""What `selrel explain` and `selrel run` say about their outputs, and which files these are. Without torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FILES = ("overlay.mp4", "strip.png", "report.html", "explanation.npz", "summary.json")
ARRAYS = ("explanation.npz", "summary.json")
OPTIONAL_FILES = ("versus.png", "versus.npz")


def remove_stale(out: str, keep: Iterable[str] = (), files: Iterable[str] = OPTIONAL_FILES) -> None:
    """Remove ``files`` of an earlier run into the same folder: beside this run's they would be taken for its own."""
    for name in set(files) - set(keep):
        (Path(out) / name).unlink(missing_ok=True)


def weights_doubt(model: str, video: str | None, weights: str, remedy: str = "pass --model") -> str | None:
    """Return a warning where a model's answers mean little: random weights, or a real video for the demo model."""
    if weights.startswith("random"):
        return "random weights: the class means nothing, the maps show the network's structure alone"
    if model == "demo" and video is not None:
        return f"the demo model knows eight motions of synthetic sprites alone; {remedy} for a real video"
    return None


def print_summary(summary: dict[str, Any], out: str, *, figures: bool = True, files: tuple[str, ...] = FILES) -> None:
    """Print the figures to standard output, unless they go there as JSON; notes and warnings to standard error."""
    if figures:
        print(
            f"{summary['target_name']}  {summary['target_probability']:.1%}   {summary['method']} on {summary['model']}"
        )
        for clip in summary["clips"][:10]:
            area, mass = (_percent(clip[key]) for key in ("motion_area", "motion_mass"))
            if "margin" in clip:
                print(f"frame {clip['start']}: {clip['margin']['sentence']}")
            kept = f"motion relevance is {mass} of the relevance, on {area} of its area"
            print(f"frame {clip['start']}: {kept}{_frozen(clip)}")
        if len(summary["clips"]) > 10:
            print(f"… and {len(summary['clips']) - 10} more clips in summary.json")
        more: tuple[str, ...] = OPTIONAL_FILES if "versus" in summary else ()
        more += ("grid.png", "grid.pdf", "grid.svg") if "methods" in summary else ()
        print(f"wrote {', '.join(files + more)} to {out}")
    print_notes(summary)


def print_notes(summary: dict[str, Any]) -> None:
    """Print notes and warnings to standard error."""
    for text in (*summary["notes"], *(f"warning: {warning}" for warning in summary["warnings"])):
        print(text, file=sys.stderr)


def _frozen(clip: dict[str, Any]) -> str:
    if "frozen" not in clip["seconds"]:
        return ""
    return f"; frozen, where nothing moves: {_percent(clip['frozen_mass'])}, on {_percent(clip['frozen_area'])}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
