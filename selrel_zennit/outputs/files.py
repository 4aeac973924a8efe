"""The five files of an explanation: overlay.mp4, strip.png, report.html, explanation.npz, summary.json. No torch."""

from __future__ import annotations

import json
import math
import os
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
from ..errors import InputError
from ..explanation import ClipExplanations, ExplainedClip, Explanation
from ..files import staged_folder
from ..loop import ClipStream
from ..motion_split import MotionSplit, shown
from ..spill import StoredClips
from . import render
from .painter import PERCENTILE, Scale, Split, scale_of_parts
from .report import write_report

# One clip lasts half a second: at its own speed nobody sees it. Longer videos play at theirs.
_SINGLE_CLIP_RATE = 8.0
_PACKAGES = ("selrel-zennit", "torch", "zennit", "onnxruntime", "openvino", "numpy", "opencv-python-headless", "av")


@dataclass(frozen=True)
class Style:
    """How relevance becomes colour, by Zennit's names: colour map, level, norm; and the theme, dark or light."""

    cmap: str = render.DEFAULT_COLORMAP
    level: float = 1.0
    relevance_norm: str = "symmetric"
    theme: str = "dark"


def write_outputs(
    folder: str | os.PathLike[str],
    clips: ClipStream | StoredClips | ClipExplanations,
    *,
    settings: dict[str, Any] | None = None,
    class_names: list[str] | None = None,
    style: Style | None = None,
    warnings: list[str] | None = None,
    additions: dict[str, Any] | None = None,
    pictures: bool = True,
) -> dict[str, Any]:
    """Write the five files into ``folder``, all or none of them, and return the summary.

    ``clips`` may be a stream, whose maps then wait on disk: memory does not grow with the video. ``settings`` are the
    summary's entries that say how the explanation was made: video, model, weights, method, preset, n_sigma (None where
    the preset is calibrated: then alpha), runner, device; what is left out is taken from ``clips.info`` where that has
    it. ``additions`` are entries that are ready (versus, check); the versus.png of "versus", which lies in the folder,
    goes into the report. Without ``pictures``, which take longer than most explanations, explanation.npz and
    summary.json alone are written.

    Raises InputError for no clips, and a folder that cannot be written.
    """
    folder = Path(folder)
    with staged_folder(folder) as staged:
        kept = clips if isinstance(clips, StoredClips) else StoredClips.of(clips, staged)
        if not len(kept):
            raise InputError("there is no explained clip to write: look at the condition and the start")
        known = {key: kept.info.get(key) or f"unknown {key}" for key in ("model", "method")}
        summary = {
            **summarise(
                kept,
                settings={**known, "weights": kept.info.get("weights"), **(settings or {})},
                class_names=class_names,
                warnings=warnings,
            ),
            **(additions or {}),
        }
        if pictures:
            _draw_all(staged, kept, summary, style or Style(), versus=folder / "versus.png")
        else:
            summary["overlay"] = None
        kept.explanations.save(staged / "explanation.npz")
        (staged / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return summary


def _draw_all(folder: Path, clips: StoredClips, summary: dict[str, Any], style: Style, versus: Path) -> None:
    """Write overlay.mp4, strip.png and report.html; the summary takes how long that was, and the overlay's rate."""
    count = len(clips)
    since = time.perf_counter()
    rate = min(_SINGLE_CLIP_RATE, clips.frame_rate) if count == 1 else clips.frame_rate
    # One scale for all clips, of the maps on disk.
    scale = scale_of_parts(lambda: clips.explanations.arrays.each("relevance"), style.relevance_norm, PERCENTILE)
    overlay = (
        frame for index in range(count) for frame in _draw(render.overlay_frames, clips, index, summary, style, scale)
    )
    write_mp4(folder / "overlay.mp4", overlay, rate)
    # One strip stands for the video: the clip in which the network was surest.
    write_png(folder / "strip.png", _draw(render.strip_image, clips, clips.surest, summary, style, scale))
    drawing = (time.perf_counter() - since) / count
    for entry in summary["clips"]:
        entry["seconds"]["render"] = drawing
    summary["overlay"] = {"frame_rate": rate, "speed": rate / clips.frame_rate}
    media = {"strip": (folder / "strip.png").read_bytes()}
    if "versus" in summary and versus.exists():
        media["versus"] = versus.read_bytes()
    write_report(folder / "report.html", summary, media, folder / "overlay.mp4")


def summarise(
    clips: StoredClips | ClipExplanations,
    *,
    settings: dict[str, Any],
    class_names: list[str] | None = None,
    warnings: list[str] | None = None,
) -> dict[str, Any]:
    """Return what summary.json holds, as plain JSON types; a share that is not defined is null."""
    target, logits = int(clips.target[0]), clips.logits
    return {
        **settings,
        "target": target,
        "target_name": class_name(target, class_names),
        "target_probability": float(_probabilities(logits)[target]),
        "top5": top_classes(logits, class_names),
        "clips": [_entry(clip, clips.info) for clip in clips],
        "frozen": {"frame": frozen_frame(clips[0].explanation.relevance.shape[1])},
        "info": clips.info,
        "notes": list(dict.fromkeys(clips.notes)),
        "warnings": list(warnings or []),
        "versions": versions(),
    }


def _entry(clip: ExplainedClip, info: dict[str, Any]) -> dict[str, Any]:
    """Return what summary.json says of a clip."""
    explanation, still = clip.explanation, clip.frozen_share
    share = explanation.motion_share()
    return {
        "start": clip.start,
        "motion_area": _number(share.area[0]),
        "motion_mass": _number(share.mass[0]),
        "frozen_area": None if still is None else _number(still.area[0]),
        "frozen_mass": None if still is None else _number(still.mass[0]),
        "relevance_sum": float(explanation.relevance[0].sum(dtype=np.float64)),
        **(_margin_of(explanation, info) if explanation.split is None else _split_entries(explanation.split)),
        "seconds": dict(clip.seconds),
    }


def _split_entries(split: MotionSplit) -> dict[str, Any]:
    """Return what summary.json says of a clip's margin: what of it is motion, with the least and the greatest."""
    low, high = split.bounds()
    return {
        "margin": {
            "total": float(split.margin[0]),
            "motion": float(split.motion[0]),
            "motion_least": float(low[0]),
            "motion_greatest": float(high[0]),
            "still": float(split.still[0]),
            "blank": float(split.blank_margin[0]),
            "frozen": split.frozen_margins[0].astype(float).tolist(),
            "reference": split.reference,
            "sentence": split.sentence(),
        }
    }


def _margin_of(explanation: Explanation, info: dict[str, Any]) -> dict[str, Any]:
    """Return the same of an explanation that is itself the motion part, as an artifact of motion_lrp gives it."""
    options = info.get("options") or {}
    whole = options.get("output") == "margin" and options.get("vacated") == "keep"
    if info.get("method") != "motion_lrp" or not whole:
        return {}
    logits, target = explanation.logits[0].astype(np.float64), int(explanation.target[0])
    total = float(logits[target] - np.delete(logits, target).mean())
    motion = float(explanation.relevance[0].sum(dtype=np.float64))
    sentence = f"{shown(motion)} of {shown(total)} (margin over the other classes) is motion"
    return {"margin": {"total": total, "motion": motion, "reference": options["reference"], "sentence": sentence}}


def _drawn_split(split: MotionSplit) -> Split:
    words, _, spread = split.sentence().partition(" (margin")
    spread = spread.partition("; ")[2]
    details = [f"{spread}" if spread else "", f"still pictures add {split.still[0]:.1f}"]
    details.append(f"a blank clip has {split.blank_margin[0]:.1f}")
    return Split(
        split.static_part[0],
        split.motion_part[0],
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


def _draw(draw: Any, clips: StoredClips, index: int, summary: dict[str, Any], style: Style, scale: Scale) -> Any:
    clip, entry = clips[index], summary["clips"][index]
    explanation = clip.explanation
    assert explanation.frames is not None
    rates = {"calibrated": ("α", "alpha"), "fdr": ("q", "q")}
    sign, key = rates.get(str(summary.get("preset")), ("", ""))
    preset = summary.get("preset")
    level = f"{sign} {summary[key]:g}" if key else f"{summary.get('n_sigma') or math.nan:g}σ"
    model = summary["model"]
    if str(summary.get("weights")).startswith("random"):
        # A picture is passed on without the warnings that stand in the summary.
        model += ", random weights"
    if explanation.unseen:
        model += ", in part unseen"
    selected = [] if preset is None else [f"{preset} {level}"]
    words = [summary["method"], model, *selected, f"from frame {entry['start']}"]

    def share(kind: str) -> tuple[float, float]:
        area, mass = entry[f"{kind}_area"], entry[f"{kind}_mass"]
        return (math.nan if area is None else area, math.nan if mass is None else mass)

    return draw(
        explanation.frames[0],
        explanation.relevance[0],
        explanation.motion_relevance[0],
        title=" · ".join(words),
        top5=[(name, probability) for name, probability in summary["top5"]],
        target_name=summary["target_name"],
        motion_share=share("motion"),
        frozen_share=None if clip.frozen_share is None else share("frozen"),
        cmap=style.cmap,
        level=style.level,
        relevance_norm=style.relevance_norm,
        theme=style.theme,
        scale=scale,
        split=None if explanation.split is None else _drawn_split(explanation.split),
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
