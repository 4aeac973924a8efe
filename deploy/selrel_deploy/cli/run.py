"""selrel run: like selrel explain, from an artifact, without torch."""

from __future__ import annotations

import json
from typing import Any

import click

from selrel_zennit.class_names import class_index, class_name
from selrel_zennit.cli.options import json_option, style_options, weights_entry, write_json
from selrel_zennit.cli.reporting import (
    ARRAYS,
    FILES,
    OPTIONAL_FILES,
    print_notes,
    print_summary,
    remove_stale,
    weights_doubt,
)
from selrel_zennit.clips.cutting import frozen_frame
from selrel_zennit.clips.spec import ClipSpec
from selrel_zennit.errors import InputError
from selrel_zennit.files import check_writable, staged_folder
from selrel_zennit.loop import TOP, ClipStream, Condition, explain_clips
from selrel_zennit.outputs.colormaps import palette
from selrel_zennit.outputs.files import Style, top_classes, versions, write_outputs
from selrel_zennit.selection.presets import preset_of
from selrel_zennit.spill import StoredClips
from selrel_zennit.synthetic import demo_frames

from ..artifact.format import Artifact
from ..runners import Runner
from ..runners.explainer import RunnerExplainer
from .runner_options import open_named, runner_options, settings_of


@click.command()
@click.argument("artifact")
@click.argument("video", required=False)
@runner_options
@click.option("--target", default="top1", show_default=True, help="top1, a class index, or a class name.")
@click.option(
    "--explain-when",
    metavar="CLASS:PROB",
    help="Explain only clips in which CLASS (index, name, or any) has at least this probability.",
)
@click.option("--start", type=click.IntRange(0), default=0, show_default=True, help="First frame of the (first) clip.")
@click.option("--all-clips", is_flag=True, help="Explain every clip, for the class with the highest mean logit.")
@click.option("--no-frozen", is_flag=True, help="Do not explain the clip frozen to one frame beside it.")
@click.option("--no-pictures", is_flag=True, help="Write explanation.npz and summary.json alone, which is faster.")
@click.option("--out", default="out", show_default=True, help="Folder for the five files.")
@style_options
@json_option
def run(
    artifact: str,
    video: str | None,
    runner: str,
    provider: str | None,
    threads: int | None,
    runner_settings: tuple[str, ...],
    target: str,
    explain_when: str | None,
    start: int,
    all_clips: bool,
    no_frozen: bool,
    no_pictures: bool,
    out: str,
    cmap: str,
    level: float,
    relevance_norm: str,
    theme: str,
    json_path: str | None,
) -> None:
    """Explain VIDEO (a file, or a folder of frames) by ARTIFACT, a file of `selrel export`: no torch is needed.

    Without VIDEO an embedded clip is explained. Writes what `selrel explain` does: overlay.mp4, strip.png, report.html,
    explanation.npz and summary.json into --out. With --explain-when, a clip that does not meet it costs a split
    artifact the forward pass alone; where no clip meets it, summary.json alone is written. The class explained is then
    CLASS, unless --target names another.
    """
    for option, value in (("VIDEO", video), ("--out", out), ("--json", json_path)):
        if value == "":
            raise InputError(f"{option} is empty: name a path")
    if json_path not in (None, "-"):
        check_writable(json_path)
    palette(cmap, level)  # a wrong name fails here, not after the work
    with (
        open_named(artifact, runner, provider, threads, **settings_of(runner_settings)) as opened,
        staged_folder(out) as folder,
    ):
        read: Artifact = opened.artifact  # type: ignore[attr-defined]
        names = read.info.get("class_names")
        if video is None:
            _check_embedded(read)
        when = condition(explain_when, read.num_classes, names)
        index = class_index(target, read.num_classes, names)
        if when is not None and index == TOP:
            index = when.target
        stream = explain_clips(
            video if video is not None else demo_frames(),
            RunnerExplainer(opened, _spec(read), read.info),
            index,
            start=start,
            all_clips=all_clips,
            frozen=not no_frozen,
            when=when,
            progress=all_clips,
        )
        clips = StoredClips.of(stream, folder)
        settings = settings_entries(read, opened, video)
        additions = {} if when is None else {"explain_when": _watched(when, stream, names)}
        doubt = weights_doubt(settings["model"], video, str(read.info.get("weights")), "export another")
        warnings = [text for text in (read.info.get("warning"), doubt) if text]
        if not len(clips):
            summary = _nothing(stream, settings, names, warnings, read.clip_shape[2]) | additions
            (folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", "utf-8")
        else:
            summary = write_outputs(
                folder,
                clips,
                settings=settings,
                class_names=names,
                style=Style(cmap, level, relevance_norm, theme),
                warnings=warnings,
                additions=additions,
                pictures=not no_pictures,
            )
    written = ARRAYS if no_pictures else FILES
    remove_stale(out, keep=written, files=FILES + OPTIONAL_FILES)
    write_json(json_path, summary)
    if len(clips):
        print_summary(summary, out, figures=json_path != "-", files=written)
        return
    remove_stale(out, keep=["summary.json"], files=FILES + OPTIONAL_FILES)
    if json_path != "-":
        print(f"no clip explained: {_highest(stream, additions['explain_when'])}; wrote summary.json to {out}")
    print_notes(summary)


def _check_embedded(artifact: Artifact) -> None:
    """Raise InputError where the embedded clip has another size than the artifact takes, which resizes by itself."""
    if artifact.frames_shape is None:
        return
    height, width = artifact.frames_shape[2:4]
    if demo_frames().shape[1:3] != (height, width):
        raise InputError(
            f"{artifact.path} takes frames of {width}×{height} pixels, and the embedded clip has others: "
            "give a VIDEO of that size"
        )


def _spec(artifact: Artifact) -> ClipSpec:
    if artifact.info.get("clip_spec") is None:
        raise InputError(
            f"{artifact.path} does not say how frames become clips (clip_spec): export it with "
            "info={'clip_spec': spec.to_dict()}"
        )
    return ClipSpec.from_dict(artifact.info["clip_spec"])


def condition(text: str | None, num_classes: int, names: list[str] | None) -> Condition | None:
    """Return what --explain-when CLASS:PROB says. A class name may hold colons."""
    if text is None:
        return None
    name, colon, number = text.rpartition(":")
    try:
        probability = float(number)
    except ValueError:
        probability = -1.0
    if not colon or not name or not 0 <= probability <= 1:
        raise InputError(f"--explain-when {text!r}: give CLASS:PROB, such as any:0.9; PROB lies in 0…1")
    return Condition(TOP if name == "any" else class_index(name, num_classes, names), probability)


def _composite(info: dict[str, Any]) -> str | None:
    """Return the class of an artifact's composite, the last part of its name."""
    composite = info.get("composite")
    return None if composite is None else str(composite["class"]).rpartition(".")[2]


def settings_entries(artifact: Artifact, runner: Runner, video: str | None) -> dict[str, Any]:
    """Return the summary's entries that say how the explanation was made, by the names that explain gives them."""
    info, selection = artifact.info, artifact.selection
    weights = {"weights": info.get("weights"), "sha256": info.get("weights_sha256"), "layout": None}
    preset = preset_of(selection)
    alpha = {"alpha": selection.get("alpha")} if preset == "calibrated" else {}
    return {
        "video": video if video is not None else "embedded clip",
        "model": info.get("model") or "unknown model",
        "weights": weights_entry(weights) if weights["weights"] is not None else None,
        "method": info.get("method") or _composite(info) or "unknown method",
        "preset": preset,
        "n_sigma": selection.get("n_sigma"),
        **alpha,
        "runner": runner.name,
        "device": runner.device,
        "provider": runner.provider,
        "precision": runner.precision,
        "artifact": {"file": str(artifact.path), "sha256": artifact.sha256},
    }


def _watched(when: Condition, stream: ClipStream, names: list[str] | None) -> dict[str, Any]:
    return {
        "class": "any" if when.target == TOP else class_name(when.target, names),
        "probability": when.probability,
        "clips": [{"start": one.start, "probability": one.probability, "explained": one.met} for one in stream.seen],
    }


def _nothing(
    stream: ClipStream, settings: dict[str, Any], names: list[str] | None, warnings: list[str], frames: int
) -> dict[str, Any]:
    """Return the summary where no clip was explained: the same entries, the target's without a value."""
    import numpy as np

    return {
        **settings,
        "target": None,
        "target_name": None,
        "target_probability": None,
        "top5": top_classes(np.concatenate([one.logits for one in stream.seen]), names),
        "clips": [],
        "frozen": {"frame": frozen_frame(frames)},
        "info": {},
        "notes": list(dict.fromkeys(stream.notes)),
        "warnings": warnings,
        "versions": versions(),
        "overlay": None,
    }


def _highest(stream: ClipStream, watched: dict[str, Any]) -> str:
    best = max(stream.seen, key=lambda one: one.probability)
    which = "a class" if watched["class"] == "any" else watched["class"]
    return f"{which} reaches {best.probability:.1%} at most (frame {best.start}), of {watched['probability']:.1%}"
