"""selrel explain."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn
from tqdm import tqdm

from ..attribution import METHODS, VideoAttributor, build_method
from ..calibration import Calibration
from ..colormaps import palette
from ..comparison import RUNNER_UP, runner_up
from ..comparison_outputs import write_versus
from ..errors import InputError
from ..files import check_writable, staged_folder
from ..metrics import sanity_check
from ..outputs import ClipExplanations, Style, class_name, write_outputs
from ..pipeline import device_of, explain_video
from ..selection import PRESETS, MotionSelection, Selection, check_alpha
from ..synthetic import demo_frames
from .options import json_option, method_options, model_options, open_model, weights_entry, write_json

OPTIONAL_FILES = ("versus.png", "versus.npz")


@click.command()
@click.argument("video", required=False)
@model_options
@click.option("--method", default="dtd", show_default=True, help="A name of `selrel list methods`.")
@click.option("--option", "pairs", multiple=True, metavar="KEY=VALUE", help="An option of the method; may be repeated.")
@click.option("--n-sigma", type=float, help="Threshold of the selection, in σ  [default: 4]")
@click.option(
    "--preset",
    type=click.Choice([*PRESETS, "calibrated"]),
    default="default",
    show_default=True,
    help="Settings of the selection.",
)
@click.option("--alpha", type=float, help="False-positive rate of --preset calibrated  [default: 0.001]")
@click.option("--calibration", "calibration_path", help="A file of `selrel calibrate`  [default: the one that ships]")
@click.option("--target", default="top1", show_default=True, help="top1, a class index, or a class name.")
@click.option("--versus", metavar="TARGET", help="A second class, or runner-up: both side by side, and the difference.")
@click.option("--check", is_flag=True, help="Does the map depend on the class, and on the network's weights?")
@click.option("--start", type=click.IntRange(0), default=0, show_default=True, help="First frame of the (first) clip.")
@click.option("--all-clips", is_flag=True, help="Explain every clip, for the class with the highest mean logit.")
@click.option("--no-frozen", is_flag=True, help="Do not explain the clip frozen to one frame beside it.")
@click.option("--out", default="out", show_default=True, help="Folder for the five files.")
@click.option("--cmap", default="coldnhot", show_default=True, help="Zennit's colour map, or one in its language.")
@click.option(
    "--level", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Level of the colour map."
)
@click.option(
    "--relevance-norm",
    type=click.Choice(["symmetric", "absolute", "unaligned"]),
    default="symmetric",
    show_default=True,
    help="How relevance is scaled to colours.",
)
@json_option
def explain(
    video: str | None,
    method: str,
    pairs: tuple[str, ...],
    n_sigma: float | None,
    preset: str,
    alpha: float | None,
    calibration_path: str | None,
    target: str,
    versus: str | None,
    check: bool,
    start: int,
    all_clips: bool,
    no_frozen: bool,
    out: str,
    cmap: str,
    level: float,
    relevance_norm: str,
    json_path: str | None,
    **model_settings: Any,
) -> None:
    """Explain VIDEO (a file, or a folder of frames): which relevance moves, and which stands still.

    Without VIDEO an embedded clip is explained; without --model, by the embedded demo model. Writes overlay.mp4,
    strip.png, report.html, explanation.npz and summary.json into --out; with --versus also versus.png and versus.npz.
    """
    for option, value in (("VIDEO", video), ("--out", out), ("--json", json_path)):
        if value == "":
            raise InputError(f"{option} is empty: name a path")
    if json_path not in (None, "-"):
        check_writable(json_path)
    palette(cmap, level)  # a wrong name fails here, not after the work
    options = method_options(pairs)
    settings = _selection_settings(preset, n_sigma, alpha, calibration_path)
    with staged_folder(out) as folder:
        model = open_model(**model_settings)
        provenance: dict[str, Any] = model.provenance  # type: ignore[assignment]
        attributor = build_method(method, model, **options)
        selection, doubt = _selection(attributor, settings, calibration_path)
        source = video if video is not None else demo_frames()
        clips = explain_video(
            model,
            source,
            attributor,
            target,
            selection=selection,
            start=start,
            all_clips=all_clips,
            frozen=not no_frozen,
            progress=_progress if all_clips else iter,
        )
        style = Style(cmap, level, relevance_norm)
        additions: dict[str, Any] = {}
        if versus is not None:
            other = explain_video(
                model,
                source,
                attributor,
                _other_class(versus, clips),
                selection=selection,
                start=start,
                all_clips=all_clips,
                frozen=False,
            )
            additions["versus"] = write_versus(
                folder, clips, other, names=_names(model, clips, other), title=f"{method} · {preset}", style=style
            )
        if check:
            additions["check"] = _check(model, clips, method, selection, options)
        unknown = _doubt(model_settings["model_name"], video, str(provenance["weights"]))
        cut = f"clip spec {provenance['clip_spec']}" if "clip_spec" in provenance else None
        warnings = [METHODS[method].warning, doubt, unknown, cut, *additions.get("check", {}).get("findings", [])]
        summary = write_outputs(
            folder,
            clips,
            settings={
                "video": video if video is not None else "embedded clip",
                "model": provenance["model"],
                "weights": weights_entry(provenance),
                "method": method,
                **settings,
                "runner": "zennit",
                "device": model_settings["device"],
            },
            class_names=getattr(model, "class_names", None),
            style=style,
            warnings=[text for text in warnings if text],
            additions=additions,
        )
    for name in OPTIONAL_FILES:
        # Of an earlier run into the same folder; beside this run's summary they would be taken for its own.
        if name.partition(".")[0] not in additions:
            (Path(out) / name).unlink(missing_ok=True)
    write_json(json_path, summary)
    if json_path != "-":
        _report(summary, out)
    for text in (*summary["notes"], *(f"warning: {warning}" for warning in summary["warnings"])):
        print(text, file=sys.stderr)


def _other_class(versus: str, clips: ClipExplanations) -> str | int:
    """Return the class that --versus names: "runner-up" is the one with the next highest mean logit."""
    if versus != RUNNER_UP:
        return versus
    explanation = clips.explanation
    return int(runner_up(explanation.logits.mean(0, keepdims=True), explanation.target[:1])[0])


def _names(model: nn.Module, clips: ClipExplanations, other: ClipExplanations) -> tuple[str, str]:
    names = getattr(model, "class_names", None)
    first, second = (int(one.explanation.target[0]) for one in (clips, other))
    return class_name(first, names), class_name(second, names)


def _check(
    model: nn.Module, clips: ClipExplanations, method: str, selection: Selection, options: dict[str, Any]
) -> dict[str, Any]:
    """Check the clip in which the network was surest; see sanity_check."""
    target = int(clips.explanation.target[0])
    surest = int(clips.explanation.logits[:, target].argmax())
    device = device_of(model)
    clip = torch.from_numpy(model.spec.from_pixels(clips.pixels[surest : surest + 1]))  # type: ignore[operator,union-attr]
    found = sanity_check(model, clip.to(device), method, target, selection=selection, **options)
    return {"start": clips.starts[surest], **found}


def _selection_settings(
    preset: str, n_sigma: float | None, alpha: float | None, calibration_path: str | None
) -> dict[str, Any]:
    """Check that the options of the selection go together, and return the summary's entries for them."""
    if preset == "calibrated":
        if n_sigma is not None:
            raise InputError("--n-sigma does not go with --preset calibrated: give --alpha")
        alpha = 0.001 if alpha is None else alpha
        check_alpha(alpha)
        return {"preset": preset, "n_sigma": None, "alpha": alpha}
    for name, value in (("--alpha", alpha), ("--calibration", calibration_path)):
        if value is not None:
            raise InputError(f"{name} goes with --preset calibrated alone, not with {preset}")
    n_sigma = 4.0 if n_sigma is None else n_sigma
    MotionSelection.preset(preset, n_sigma=n_sigma)
    return {"preset": preset, "n_sigma": n_sigma}


def _selection(
    attributor: VideoAttributor, settings: dict[str, Any], calibration_path: str | None
) -> tuple[Selection, str | None]:
    """Return the selection, and a warning where its thresholds did not stand their verification."""
    if settings["preset"] != "calibrated":
        return MotionSelection.preset(settings["preset"], n_sigma=settings["n_sigma"]), None
    path = calibration_path
    calibration = Calibration.read(path) if path is not None else Calibration.shipped(attributor)
    level = calibration.level(settings["alpha"])
    selection = calibration.selection(settings["alpha"])
    try:
        selection.check(attributor)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if level.holds:
        return selection, None
    return selection, (
        f"the thresholds for alpha {level.alpha:g} let {level.held_out_rate:.2g} of the voxels of held-out frozen "
        "clips pass: calibrate on more clips"
    )


def _progress(clips: Iterable[Any]) -> Iterable[Any]:
    # disable=None: no bar where standard error is not a terminal.
    return tqdm(clips, desc="clips", unit="clip", disable=None)  # type: ignore[no-any-return]


def _doubt(model_name: str, video: str | None, weights: str) -> str | None:
    if weights.startswith("random"):
        return "random weights: the class means nothing, the maps show the network's structure alone"
    if model_name == "demo" and video is not None:
        return "the demo model knows eight motions of synthetic sprites alone; pass --model for a real video"
    return None


def _report(summary: dict[str, Any], out: str) -> None:
    print(f"{summary['target_name']}  {summary['target_probability']:.1%}   {summary['method']} on {summary['model']}")
    for clip in summary["clips"][:10]:
        area, mass = (_percent(clip[key]) for key in ("motion_area", "motion_mass"))
        print(f"frame {clip['start']}: motion is {mass} of the relevance, on {area} of its area{_frozen(clip)}")
    if len(summary["clips"]) > 10:
        print(f"… and {len(summary['clips']) - 10} more clips in summary.json")
    files = ["overlay.mp4", "strip.png", "report.html", "explanation.npz", "summary.json"]
    print(f"wrote {', '.join(files + list(OPTIONAL_FILES if 'versus' in summary else ()))} to {out}")


def _frozen(clip: dict[str, Any]) -> str:
    if "frozen" not in clip["seconds"]:
        return ""
    return f"; frozen, where nothing moves: {_percent(clip['frozen_mass'])}, on {_percent(clip['frozen_area'])}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
