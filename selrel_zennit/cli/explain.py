"""selrel explain."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import click
from tqdm import tqdm

from ..attribution import METHODS
from ..colormaps import palette
from ..files import staged_folder
from ..outputs import Style, write_outputs
from ..pipeline import explain_video
from ..selection import PRESETS, MotionSelection
from ..synthetic import demo_frames
from .options import json_option, method_options, model_options, open_model, weights_entry, write_json


@click.command()
@click.argument("video", required=False)
@model_options
@click.option("--method", default="dtd", show_default=True, help="A name of `selrel list methods`.")
@click.option("--option", "pairs", multiple=True, metavar="KEY=VALUE", help="An option of the method; may be repeated.")
@click.option("--n-sigma", type=float, default=4.0, show_default=True, help="Threshold of the selection, in σ.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="default",
    show_default=True,
    help="Settings of the selection.",
)
@click.option("--target", default="top1", show_default=True, help="top1, a class index, or a class name.")
@click.option("--start", type=click.IntRange(0), default=0, show_default=True, help="First frame of the (first) clip.")
@click.option("--all-clips", is_flag=True, help="Explain every clip, for the class with the highest mean logit.")
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
    n_sigma: float,
    preset: str,
    target: str,
    start: int,
    all_clips: bool,
    out: str,
    cmap: str,
    level: float,
    relevance_norm: str,
    json_path: str | None,
    **model_settings: Any,
) -> None:
    """Explain VIDEO (a file, or a folder of frames): which relevance moves, and which stands still.

    Without VIDEO an embedded clip is explained; without --model, by the embedded demo model. Writes overlay.mp4,
    strip.png, report.html, explanation.npz and summary.json into --out.
    """
    palette(cmap, level)  # a wrong name fails here, not after the work
    selection = MotionSelection.preset(preset, n_sigma=n_sigma)
    with staged_folder(out) as folder:
        model = open_model(**model_settings)
        provenance: dict[str, Any] = model.provenance  # type: ignore[assignment]
        clips = explain_video(
            model,
            video if video is not None else demo_frames(),
            method,
            target,
            selection=selection,
            start=start,
            all_clips=all_clips,
            progress=_progress if all_clips else iter,
            **method_options(pairs),
        )
        warnings = [METHODS[method].warning, _doubt(model_settings["model_name"], video, str(provenance["weights"]))]
        summary = write_outputs(
            folder,
            clips,
            settings={
                "video": video if video is not None else "embedded clip",
                "model": provenance["model"],
                "weights": weights_entry(provenance),
                "method": method,
                "preset": preset,
                "n_sigma": n_sigma,
                "runner": "zennit",
                "device": model_settings["device"],
            },
            class_names=getattr(model, "class_names", None),
            style=Style(cmap, level, relevance_norm),
            warnings=[text for text in warnings if text],
        )
    write_json(json_path, summary)
    if json_path != "-":
        _report(summary, out)
    for text in (*summary["notes"], *(f"warning: {warning}" for warning in summary["warnings"])):
        print(text, file=sys.stderr)


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
        area, mass = (
            f"{share:.1%}" if share is not None else "-" for share in (clip["motion_area"], clip["motion_mass"])
        )
        print(f"frame {clip['start']}: motion is {mass} of the relevance, on {area} of its area")
    if len(summary["clips"]) > 10:
        print(f"… and {len(summary['clips']) - 10} more clips in summary.json")
    print(f"wrote overlay.mp4, strip.png, report.html, explanation.npz, summary.json to {out}")
