"""The five files of an explanation: overlay.mp4, strip.png, report.html, explanation.npz, summary.json. No torch."""

from __future__ import annotations

import json
import math
import platform
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..class_names import class_name as class_name
from ..clips.cutting import frozen_frame
from ..clips.video import write_mp4, write_png
from ..explanation import ClipExplanations
from ..motion_split import MotionSplit, shown
from . import render
from .painter import PERCENTILE, Split, colour_scale
from .report import report_html

# One clip lasts half a second: at its own speed nobody sees it. Longer videos play at theirs.
_SINGLE_CLIP_RATE = 8.0
_PACKAGES = ("selrel-zennit", "torch", "zennit", "onnxruntime", "openvino", "numpy", "opencv-python-headless", "av")


@dataclass(frozen=True)
class Style:
    """How relevance becomes colour, by Zennit's names: colour map, level, norm."""

    cmap: str = render.DEFAULT_COLORMAP
    level: float = 1.0
    relevance_norm: str = "symmetric"


def write_outputs(
    folder: Path,
    clips: ClipExplanations,
    *,
    settings: dict[str, Any],
    class_names: list[str] | None = None,
    style: Style | None = None,
    warnings: list[str] | None = None,
    additions: dict[str, Any] | None = None,
    pictures: bool = True,
) -> dict[str, Any]:
    """Write the five files into ``folder``, which exists, and return the summary.

    ``settings`` are the summary's entries that say how the explanation was made: video, model, weights, method, preset,
    n_sigma (None where the preset is calibrated: then alpha), runner, device. ``additions`` are entries that are ready
    (versus, check); a versus.png that lies in the folder goes into the report. Without ``pictures``, which take longer
    than most explanations, explanation.npz and summary.json alone are written. For all or nothing, pass the folder of
    ``files.staged_folder``.
    """
    style = style or Style()
    summary = {
        **summarise(clips, settings=settings, class_names=class_names, warnings=warnings),
        **(additions or {}),
    }
    if pictures:
        _draw_all(folder, clips, summary, style)
    else:
        summary["overlay"] = None
    arrays: dict[str, Any] = {"frames": clips.pixels, **clips.explanation.arrays()}
    np.savez_compressed(folder / "explanation.npz", **arrays)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return summary


def _draw_all(folder: Path, clips: ClipExplanations, summary: dict[str, Any], style: Style) -> None:
    """Write overlay.mp4, strip.png and report.html; the summary takes how long that was, and the overlay's rate."""
    count = len(clips.starts)
    since = time.perf_counter()
    rate = min(_SINGLE_CLIP_RATE, clips.frame_rate) if count == 1 else clips.frame_rate
    overlay = (frame for index in range(count) for frame in _draw(render.overlay_frames, clips, index, summary, style))
    write_mp4(folder / "overlay.mp4", overlay, rate)
    # One strip stands for the video: the clip in which the network was surest.
    shown = int(np.argmax(clips.explanation.logits[:, summary["target"]]))
    write_png(folder / "strip.png", _draw(render.strip_image, clips, shown, summary, style))
    drawing = (time.perf_counter() - since) / count
    for entry in summary["clips"]:
        entry["seconds"]["render"] = drawing
    summary["overlay"] = {"frame_rate": rate, "speed": rate / clips.frame_rate}
    pictures = {name: folder / f"{name}.png" for name in ("strip", "versus")}
    media = {name: path.read_bytes() for name, path in pictures.items() if path.exists()}
    media["overlay"] = (folder / "overlay.mp4").read_bytes()
    (folder / "report.html").write_text(report_html(summary, media), encoding="utf-8")


def summarise(
    clips: ClipExplanations,
    *,
    settings: dict[str, Any],
    class_names: list[str] | None = None,
    warnings: list[str] | None = None,
) -> dict[str, Any]:
    """Return what summary.json holds, as plain JSON types; a share that is not defined is null."""
    explanation = clips.explanation
    target = int(explanation.target[0])
    share, still = explanation.motion_share(), clips.frozen_share

    return {
        **settings,
        "target": target,
        "target_name": class_name(target, class_names),
        "target_probability": float(_probabilities(explanation.logits)[target]),
        "top5": top_classes(explanation.logits, class_names),
        "clips": [
            {
                "start": start,
                "motion_area": _number(share.area[i]),
                "motion_mass": _number(share.mass[i]),
                "frozen_area": None if still is None else _number(still.area[i]),
                "frozen_mass": None if still is None else _number(still.mass[i]),
                "relevance_sum": float(explanation.relevance[i].sum(dtype=np.float64)),
                **(_margin_of(clips, i) if explanation.split is None else _split_entries(explanation.split, i)),
                "seconds": dict(seconds),
            }
            for i, (start, seconds) in enumerate(zip(clips.starts, clips.seconds, strict=True))
        ],
        "frozen": {"frame": frozen_frame(explanation.relevance.shape[1])},
        "info": clips.info,
        "notes": list(dict.fromkeys(clips.notes)),
        "warnings": list(warnings or []),
        "versions": versions(),
    }


def _split_entries(split: MotionSplit, index: int) -> dict[str, Any]:
    """Return what summary.json says of a clip's margin: what of it is motion, with the least and the greatest."""
    low, high = split.bounds()
    return {
        "margin": {
            "total": float(split.margin[index]),
            "motion": float(split.motion[index]),
            "motion_least": float(low[index]),
            "motion_greatest": float(high[index]),
            "still": float(split.still[index]),
            "blank": float(split.blank_margin[index]),
            "frozen": split.frozen_margins[index].astype(float).tolist(),
            "reference": split.reference,
            "sentence": split.sentence(index),
        }
    }


def _margin_of(clips: ClipExplanations, index: int) -> dict[str, Any]:
    """Return the same of an explanation that is itself the motion part, as an artifact of motion_lrp gives it."""
    options = clips.info.get("options") or {}
    if (
        clips.info.get("method") != "motion_lrp"
        or options.get("output") != "margin"
        or options.get("vacated") != "keep"
    ):
        return {}
    explanation = clips.explanation
    logits, target = explanation.logits[index].astype(np.float64), int(explanation.target[index])
    total = float(logits[target] - np.delete(logits, target).mean())
    motion = float(explanation.relevance[index].sum(dtype=np.float64))
    sentence = f"{shown(motion)} of {shown(total)} (margin over the other classes) is motion"
    return {"margin": {"total": total, "motion": motion, "reference": options["reference"], "sentence": sentence}}


def _drawn_split(split: MotionSplit, index: int) -> Split:
    words, _, spread = split.sentence(index).partition(" (margin")
    spread = spread.partition("; ")[2]
    details = [f"{spread}" if spread else "", f"still pictures add {split.still[index]:.1f}"]
    details.append(f"a blank clip has {split.blank_margin[index]:.1f}")
    return Split(
        split.static_part[index],
        split.motion_part[index],
        words,
        tuple(detail.replace("-", "−") for detail in details if detail),
    )


def top_classes(logits: npt.NDArray[np.floating[Any]], class_names: list[str] | None) -> list[list[Any]]:
    """Return [name, probability] of the five likeliest classes by the mean of logits [B,K]."""
    probabilities = _probabilities(logits)
    order = np.argsort(-probabilities, kind="stable")[:5]
    return [[class_name(int(index), class_names), float(probabilities[index])] for index in order]


def _probabilities(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    mean_logits = logits.astype(np.float64).mean(axis=0)
    exponentials = np.exp(mean_logits - mean_logits.max())
    return np.asarray(exponentials / exponentials.sum())


def _draw(draw: Any, clips: ClipExplanations, index: int, summary: dict[str, Any], style: Style) -> Any:
    explanation, entry = clips.explanation, summary["clips"][index]
    rates = {"calibrated": ("α", "alpha"), "fdr": ("q", "q")}
    sign, key = rates.get(summary["preset"], ("", ""))
    level = f"{sign} {summary[key]:g}" if key else f"{summary['n_sigma']:g}σ"
    model = summary["model"]
    if str(summary.get("weights")).startswith("random"):
        # A picture is passed on without the warnings that stand in the summary.
        model += ", random weights"
    if explanation.unseen:
        model += ", in part unseen"
    words = (summary["method"], model, f"{summary['preset']} {level}", f"from frame {entry['start']}")

    def share(kind: str) -> tuple[float, float]:
        area, mass = entry[f"{kind}_area"], entry[f"{kind}_mass"]
        return (math.nan if area is None else area, math.nan if mass is None else mass)

    return draw(
        clips.pixels[index],
        explanation.relevance[index],
        explanation.motion_relevance[index],
        title=" · ".join(words),
        top5=[(name, probability) for name, probability in summary["top5"]],
        target_name=summary["target_name"],
        motion_share=share("motion"),
        frozen_share=None if clips.frozen_share is None else share("frozen"),
        cmap=style.cmap,
        level=style.level,
        relevance_norm=style.relevance_norm,
        scale=colour_scale(explanation.relevance, style.relevance_norm, PERCENTILE),
        split=None if explanation.split is None else _drawn_split(explanation.split, index),
    )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that have a part in an explanation, where installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
