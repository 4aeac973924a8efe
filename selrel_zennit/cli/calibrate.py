"""selrel calibrate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ..attribution import build_method
from ..calibration.camera import CODECS, Camera
from ..calibration.measure import CLIPS
from ..calibration.measure import calibrate as measure
from ..calibration.stills import still_footage, synthetic_stills, video_stills
from ..calibration.thresholds import ALPHAS, CLASSES, REGION_Q, TOLERANCE, Calibration
from ..clips.spec import ClipSpec
from ..errors import InputError
from ..files import atomic_path
from ..selection.selections import check_alpha
from .options import allow_unseen_option, json_option, method_options, model_options, open_model, write_json


@click.command()
@model_options
@click.option(
    "--method", default="dtd", show_default=True, help="A name of `selrel list methods`, or package.module:name."
)
@click.option("--option", "pairs", multiple=True, metavar="KEY=VALUE", help="An option of the method; may be repeated.")
@click.option(
    "--clips",
    "paths",
    multiple=True,
    metavar="PATH",
    help="A video, a folder of frames or a folder of videos to take frames from; may be repeated  [default: synthetic]",
)
@click.option(
    "--still",
    "footage",
    multiple=True,
    metavar="VIDEO",
    help="Footage in which nothing moves, taken as it is, with the camera's noise and codec; may be repeated.",
)
@click.option("--noise", type=float, default=0.0, help="Sensor noise of still clips, σ in grey levels  [default: none]")
@click.option("--codec", type=click.Choice(CODECS), default="none", help="What still clips go through  [default: none]")
@click.option(
    "--classes",
    type=click.Choice(CLASSES),
    default="drawn",
    show_default=True,
    help="Class that is explained of a still clip: drawn at random, so that the rates hold for any, or its top class.",
)
@click.option(
    "--n-clips",
    type=click.IntRange(1),
    default=CLIPS,
    show_default=True,
    help="Still clips to make the thresholds from.",
)
@click.option("--held-out", type=click.IntRange(2), help="Still clips to verify them on  [default: as many]")
@click.option(
    "--alpha",
    "alphas",
    type=float,
    multiple=True,
    default=ALPHAS,
    show_default=True,
    help="False-positive rate in (0, 0.5); may be repeated.",
)
@allow_unseen_option
@click.option("--out", "-o", required=True, help="The file to write, for `selrel explain --calibration`.")
@json_option
def calibrate(
    method: str,
    pairs: tuple[str, ...],
    paths: tuple[str, ...],
    footage: tuple[str, ...],
    noise: float,
    codec: str,
    classes: str,
    n_clips: int,
    held_out: int | None,
    alphas: tuple[float, ...],
    allow_unseen: bool,
    out: str,
    json_path: str | None,
    **model_settings: Any,
) -> int:
    """Measure thresholds with a stated false-positive rate for a model and method, and verify them.

    Clips of a world that stands still are explained: one frame repeated, as a camera with --noise and --codec films it,
    or your own footage (--still). What a share ALPHA of their voxels exceeds becomes the threshold, and regions are
    tested against them (--preset fdr). The exit code is 1 where the rate on the held-out clips lies more than 20 % from
    ALPHA.
    """
    for alpha in alphas:
        check_alpha(alpha)
    camera = Camera(noise, codec)
    if footage and (paths or not camera.exact):
        raise InputError("--still takes footage as it is: leave out --clips, --noise and --codec")
    model = open_model(**model_settings)
    attributor = build_method(method, model, strict=not allow_unseen, **method_options(pairs))
    spec: ClipSpec = model.spec  # type: ignore[assignment]
    drawn = (n_clips, held_out or n_clips, model_settings["seed"])
    if footage:
        stills = still_footage(spec, footage, *drawn)
    else:
        stills = video_stills(spec, paths, *drawn, camera) if paths else synthetic_stills(spec, *drawn, camera)
    with atomic_path(out) as temporary:  # a place that cannot be written fails here, not after the work
        calibration = measure(model, attributor, stills, alphas=alphas, classes=classes, progress=True)
        Path(temporary).write_text(calibration.to_json(), encoding="utf-8")
    write_json(json_path, calibration.to_dict())
    if json_path != "-":
        _report(calibration, out)
    failed = [f"{level.alpha:g}" for level in calibration.levels if not level.holds]
    if not failed:
        return 0
    print(
        f"selrel: check failed: alpha {', '.join(failed)}: the held-out rate lies more than {TOLERANCE:.0%} away; "
        "give more clips with --n-clips and --held-out",
        file=sys.stderr,
    )
    return 1


def _report(calibration: Calibration, out: str) -> None:
    made_for = calibration.made_for
    print(f"{made_for.method} on {made_for.model}: thresholds on |G|, of relevance with Σ|R| = 1 a clip")
    of = "classes drawn at random" if calibration.classes == "drawn" else "the top class of each"
    print(f"{calibration.clips} still clips, verified on {calibration.held_out} others ({calibration.stills}); {of}")
    for level in calibration.levels:
        low, high = min(level.thresholds), max(level.thresholds)
        print(
            f"alpha {level.alpha:g}: thresholds {low:.3g} … {high:.3g}, false-positive rate held out "
            f"{level.held_out_rate:.3g} ± {level.held_out_error:.1g} ({level.held_out_rate / level.alpha - 1:+.0%})"
        )
    if calibration.false_alarms is not None:
        print(
            f"regions at q = {REGION_Q:g}: any is kept in {calibration.false_alarms:.1%} of the held-out still clips"
            + ("" if calibration.regions_hold else ", more than promised: give more clips with --n-clips")
        )
    print(f"wrote {out}")
