"""selrel explain."""

from __future__ import annotations

from typing import Any

import click
import torch
from torch import nn

from ..attribution import METHODS, build_method
from ..comparison import RUNNER_UP, runner_up
from ..errors import InputError
from ..files import check_writable, staged_folder
from ..loop import explain_clips
from ..metrics import sanity_check
from ..metrics.counterfactual import counterfactuals
from ..outputs.colormaps import palette
from ..outputs.files import Style, write_outputs
from ..outputs.versus import write_versus
from ..pipeline import ModelExplainer, device_of, spec_of
from ..references import REFERENCES
from ..selection.selections import Selection
from ..spill import StoredClips
from ..synthetic import demo_frames
from .grid import GRID, add_grid, named
from .options import (
    allow_unseen_option,
    json_option,
    method_options,
    model_options,
    open_model,
    style_options,
    weights_entry,
    write_json,
)
from .reporting import OPTIONAL_FILES, print_summary, remove_stale, weights_doubt
from .selection_options import chosen_selection, selection_options, selection_settings


@click.command()
@click.argument("video", required=False)
@model_options
@click.option(
    "--method",
    default="dtd",
    show_default=True,
    help="A name of `selrel list methods`, or package.module:name; several with commas make a grid of all.",
)
@click.option("--option", "pairs", multiple=True, metavar="KEY=VALUE", help="An option of the method; may be repeated.")
@selection_options
@click.option("--target", default="top1", show_default=True, help="top1, a class index, or a class name.")
@click.option("--versus", metavar="TARGET", help="A second class, or runner-up: both side by side, and the difference.")
@click.option(
    "--check",
    type=click.Choice(["maps", "motion"]),
    is_flag=False,
    flag_value="maps",
    help="maps (or nothing): does the map depend on the class and the weights? motion: does the answer, on motion?",
)
@click.option("--start", type=click.IntRange(0), default=0, show_default=True, help="First frame of the (first) clip.")
@click.option("--all-clips", is_flag=True, help="Explain every clip, for the class with the highest mean logit.")
@click.option(
    "--reference",
    type=click.Choice([*REFERENCES, "none"]),
    default="frames",
    show_default=True,
    help="What stands still in place of the clip, to tell how much of the margin is motion; none leaves that out.",
)
@click.option("--no-frozen", is_flag=True, help="Do not explain the clip frozen to one frame beside it.")
@click.option(
    "--grid-rows",
    type=click.Choice(["time", "clips"]),
    default="time",
    show_default=True,
    help="Rows of the grid of several methods.",
)
@click.option(
    "--grid-width",
    type=click.Choice(["single", "double"]),
    default="double",
    show_default=True,
    help="Width of the grid: a journal's single (3.5 in) or double column (7.16 in).",
)
@allow_unseen_option
@click.option("--out", default="out", show_default=True, help="Folder for the five files.")
@style_options
@json_option
def explain(
    video: str | None,
    method: str,
    pairs: tuple[str, ...],
    n_sigma: float | None,
    preset: str,
    alpha: float | None,
    q: float | None,
    calibration_path: str | None,
    target: str,
    versus: str | None,
    check: str | None,
    start: int,
    all_clips: bool,
    reference: str,
    no_frozen: bool,
    grid_rows: str,
    grid_width: str,
    allow_unseen: bool,
    out: str,
    cmap: str,
    level: float,
    relevance_norm: str,
    theme: str,
    json_path: str | None,
    **model_settings: Any,
) -> None:
    """Explain VIDEO (a file, or a folder of frames): which relevance moves, and which stands still.

    Without VIDEO an embedded clip is explained; without --model, by the embedded demo model. Writes overlay.mp4,
    strip.png, report.html, explanation.npz and summary.json into --out; with --versus also versus.png and versus.npz.
    With several methods these are of the first one, and grid.png, grid.pdf and grid.svg show all.
    """
    for option, value in (("VIDEO", video), ("--out", out), ("--json", json_path)):
        if value == "":
            raise InputError(f"{option} is empty: name a path")
    if json_path not in (None, "-"):
        check_writable(json_path)
    palette(cmap, level)  # a wrong name fails here, not after the work
    options = method_options(pairs)
    method, *others = named(method)
    if others and (options or calibration_path):
        raise InputError("--option and --calibration are for one method: give --method a single name with them")
    settings = selection_settings(preset, n_sigma, alpha, q, calibration_path)
    with staged_folder(out) as folder:
        model = open_model(**model_settings)
        provenance: dict[str, Any] = model.provenance  # type: ignore[assignment]
        attributor = build_method(method, model, strict=not allow_unseen, **options)
        selection, doubt = chosen_selection(attributor, settings, calibration_path)
        explainer = ModelExplainer(
            model, attributor, selection=selection, motion=None if reference == "none" else reference
        )
        stream = explain_clips(
            video if video is not None else demo_frames(),
            explainer,
            target,
            start=start,
            all_clips=all_clips,
            frozen=not no_frozen,
            progress=all_clips,
        )
        clips = StoredClips.of(stream, folder)
        style = Style(cmap, level, relevance_norm, theme)
        additions: dict[str, Any] = {}
        if versus is not None:
            explainer = ModelExplainer(model, attributor, selection=selection)
            other = explain_clips(clips.again, explainer, _other_class(versus, clips), frozen=False)
            names = getattr(model, "class_names", None)
            title = f"{method} · {preset}"
            additions["versus"] = write_versus(folder, clips, other, names=names, title=title, style=style)
        if check == "motion":
            additions["counterfactuals"] = _counterfactuals(model, clips)
        if check == "maps":
            additions["check"] = _check(model, clips, method, selection, {**options, "strict": not allow_unseen})
        if others:
            additions["methods"] = add_grid(
                folder,
                model,
                (method, clips),
                others,
                settings,
                rows=grid_rows,
                width=grid_width,
                cmap=cmap,
                strict=not allow_unseen,
            )
        unknown = weights_doubt(model_settings["model_name"], video, str(provenance["weights"]))
        warnings = [
            METHODS[method].warning if method in METHODS else None,
            doubt,
            unknown,
            *additions.get("check", {}).get("findings", []),
        ]
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
    kept = (*(OPTIONAL_FILES if "versus" in additions else ()), *(GRID if others else ()))
    remove_stale(out, keep=kept, files=(*OPTIONAL_FILES, *GRID))
    write_json(json_path, summary)
    print_summary(summary, out, figures=json_path != "-")


def _other_class(versus: str, clips: StoredClips) -> str | int:
    """Return the class that --versus names: "runner-up" is the one with the next highest mean logit."""
    if versus != RUNNER_UP:
        return versus
    return int(runner_up(clips.logits.mean(0, keepdims=True), clips.target[:1])[0])


def _check(
    model: nn.Module, clips: StoredClips, method: str, selection: Selection, options: dict[str, Any]
) -> dict[str, Any]:
    """Check the clip in which the network was surest; see sanity_check."""
    start, clip = _surest(model, clips)
    return {
        "start": start,
        **sanity_check(model, clip, method, int(clips.target[0]), selection=selection, **options),
    }


def _counterfactuals(model: nn.Module, clips: StoredClips) -> dict[str, Any]:
    """Return the margins of the clip in which the network was surest, frozen, shuffled and reversed."""
    start, clip = _surest(model, clips)
    return {"start": start, **counterfactuals(model, clip, int(clips.target[0])).to_dict()}


def _surest(model: nn.Module, clips: StoredClips) -> tuple[int, torch.Tensor]:
    """Return where the clip in which the network was surest begins, and the clip."""
    found = clips[clips.surest]
    assert found.explanation.frames is not None
    return found.start, torch.from_numpy(spec_of(model).from_pixels(found.explanation.frames)).to(device_of(model))
