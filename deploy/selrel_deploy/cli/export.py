"""selrel export."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click
import torch

from selrel_zennit.attribution import METHODS, build_method
from selrel_zennit.cli.options import (
    allow_unseen_option,
    json_option,
    method_options,
    model_options,
    open_model,
    write_json,
)
from selrel_zennit.cli.reporting import weights_doubt
from selrel_zennit.cli.selection_options import chosen_selection, selection_options, selection_settings
from selrel_zennit.clips.spec import ClipSpec
from selrel_zennit.clips.video import read_frames
from selrel_zennit.errors import InputError
from selrel_zennit.files import check_writable

from ..artifact.export import export as write_artifact
from ..artifact.format import INPUTS, Artifact, manifest_path, read_artifact
from ..compiler import ExplanationGraph, compile_explanation
from ..kit.kit import check_kit_folder, write_kit
from ..precisions import PRECISIONS
from ..runners.tensorrt.engine_lint import Report, build, installed


@click.command()
@model_options
@click.option("--method", default="dtd", show_default=True, help="A compilable method of `selrel list methods`.")
@click.option("--option", "pairs", multiple=True, metavar="KEY=VALUE", help="An option of the method; may be repeated.")
@click.option("-o", "--out", required=True, metavar="F.onnx", help="The artifact; its other files stand beside it.")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    metavar="FORWARD+RELEVANCE",
    help=f"One of {', '.join(name for name in PRECISIONS if 'bf16' not in name)}.",
)
@click.option("--split", is_flag=True, help="Two files with shared weights: the forward pass, and the explanation.")
@click.option(
    "--input",
    "kind",
    type=click.Choice(list(INPUTS)),
    default="float",
    show_default=True,
    help="float: clips in model units. uint8: frames, resized and scaled in the graph.",
)
@click.option("--frame-size", metavar="HxW", help="Height and width of the frames of --input uint8.")
@click.option("--batch", type=click.IntRange(1, 1024), default=1, show_default=True, help="Clips per call, fixed.")
@selection_options
@click.option(
    "--golden-clips",
    "videos",
    multiple=True,
    metavar="PATH",
    help="A video whose first clip becomes a golden case; may be repeated  [default: three synthetic clips]",
)
@allow_unseen_option
@click.option("--kit", metavar="DIR", help="Also write a folder with all that a device needs, TensorRT and Triton too.")
@click.option("--explain-passes", is_flag=True, help="Print what each pass of the compiler left.")
@click.option("--lint", is_flag=True, help="Let TensorRT-RTX build the files; exit code 1 for what it refuses.")
@json_option
def export(
    method: str,
    pairs: tuple[str, ...],
    out: str,
    precision: str,
    split: bool,
    kind: str,
    frame_size: str | None,
    batch: int,
    n_sigma: float | None,
    preset: str,
    alpha: float | None,
    q: float | None,
    calibration_path: str | None,
    videos: tuple[str, ...],
    allow_unseen: bool,
    kit: str | None,
    explain_passes: bool,
    lint: bool,
    json_path: str | None,
    **model_settings: Any,
) -> int:
    """Write an explanation as one static graph, for devices without torch.

    Beside F.onnx stand F.json, which describes it, and F.golden.npz, cases to check a device by.
    """
    _check_paths(out, json_path, kit)
    if method in METHODS and not METHODS[method].compilable:
        names = ", ".join(name for name, entry in METHODS.items() if entry.compilable)
        raise InputError(f"{method} is no fixed computation and cannot be compiled; these can: {names}")
    if lint and not installed():
        raise InputError("--lint needs TensorRT-RTX's parser: pip install 'selrel-zennit[trt-lint]'")
    if model_settings["device"] != "cpu":
        raise InputError("--device: graphs are compiled on the processor, and run where they are opened")
    size = _frame_size(kind, frame_size)
    options = method_options(pairs)
    settings = selection_settings(preset, n_sigma, alpha, q, calibration_path)
    model = open_model(**model_settings)
    spec: ClipSpec = model.spec  # type: ignore[assignment]
    attributor = build_method(method, model, strict=not allow_unseen, **options)
    selection, warning = chosen_selection(attributor, settings, calibration_path)
    clips = _golden_clips(videos, spec, size, batch)
    example = torch.zeros(batch, *spec.shape)
    graph = compile_explanation(attributor, example, selection, precision)
    info = {"layout": model.provenance["layout"]}  # type: ignore[index]
    path = write_artifact(graph, out, clips=clips, info=info, split=split, input=kind, frame_size=size)
    artifact = read_artifact(path, written=True)
    report = build(artifact) if lint else None
    if kit is not None:
        write_kit(artifact, kit)
    doubt = weights_doubt(model_settings["model_name"], None, str(artifact.info["weights"]))
    warnings = [text for text in (METHODS[method].warning if method in METHODS else None, warning, doubt) if text]
    figures = _figures(graph, artifact, report, warnings)
    write_json(json_path, figures)
    if json_path != "-":
        _print(figures, graph if explain_passes else None)
        if kit is not None:
            print(f"{kit}: the kit; its README.md says how to go on")
    for text in warnings:
        print(f"warning: {text}", file=sys.stderr)
    if report is not None:
        for refusal in report.refusals:
            print(f"refused: {refusal}", file=sys.stderr)
    return 1 if report is not None and report.refusals else 0


def _check_paths(out: str, json_path: str | None, kit: str | None) -> None:
    for option, value in (("-o", out), ("--json", json_path), ("--kit", kit)):
        if value == "":
            raise InputError(f"{option} is empty: name a path")
    if not out.endswith(".onnx"):
        raise InputError(f"-o {out}: give a name that ends in .onnx")
    check_writable(out)
    if json_path not in (None, "-"):
        check_writable(json_path)
        if Path(json_path).resolve() == manifest_path(Path(out)).resolve():
            raise InputError(f"--json {json_path} is the artifact's own description: give another name")
    if kit is not None:
        check_kit_folder(out, kit)


def _frame_size(kind: str, text: str | None) -> tuple[int, int] | None:
    if kind == "float":
        if text is not None:
            raise InputError("--frame-size goes with --input uint8 alone")
        return None
    if text is None:
        raise InputError("--input uint8 needs --frame-size HxW, the height and width of the frames, such as 240x320")
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None or min(int(match[1]), int(match[2])) < 1:
        raise InputError(f"--frame-size {text}: give height and width as HxW, such as 240x320")
    return int(match[1]), int(match[2])


def _golden_clips(
    videos: tuple[str, ...], spec: ClipSpec, size: tuple[int, int] | None, batch: int
) -> torch.Tensor | None:
    """Return the first clips of videos as the artifact takes them, repeated up to a multiple of the batch."""
    if not videos:
        return None
    clips = []
    for video in videos:
        frames = read_frames(video, count=spec.span)
        if size is not None and frames.shape[1:3] != size:
            raise InputError(
                f"{video} has frames of {frames.shape[1]}x{frames.shape[2]} (height x width), "
                f"--frame-size says {size[0]}x{size[1]}"
            )
        chosen = frames[spec.indices(len(frames))]
        clips.append(spec.clip(frames)[0] if size is None else torch.from_numpy(chosen))
    return torch.stack([clips[index % len(clips)] for index in range(len(clips) + -len(clips) % batch)])


def _figures(graph: ExplanationGraph, artifact: Artifact, report: Report | None, warnings: list[str]) -> dict[str, Any]:
    folder = artifact.path.parent
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha} for name, sha in artifact.files.items()}
    figures: dict[str, Any] = {
        "artifact": str(artifact.path),
        "sha256": artifact.sha256,
        "parts": {role: part.name for role, part in artifact.parts.items()},
        "files": files,
        "input": artifact.input,
        "input_shape": list(artifact.input_shape),
        "num_classes": artifact.num_classes,
        "precision": artifact.precision,
        "selection": artifact.selection,
        "info": artifact.info,
        "passes": [entry._asdict() for entry in graph.passes],
        "warnings": warnings,
    }
    if report is not None:
        refusals = [vars(refusal) for refusal in report.refusals]
        figures["lint"] = {"tensorrt_rtx": report.version, "refusals": refusals, "plan_bytes": report.plan_bytes}
    return figures


def _print(figures: dict[str, Any], passes: ExplanationGraph | None) -> None:
    if passes is not None:
        print(*passes.passes, sep="\n")
    info = figures["info"]
    shape = ",".join(map(str, figures["input_shape"]))
    print(f"{info['method']} on {info['model']}, {figures['precision']}: {figures['input']} [{shape}]")
    for name, file in figures["files"].items():
        print(f"{name:<24} {file['bytes'] / 1e6:10.1f} MB  sha256 {file['sha256']}")
    print(f"{Path(figures['artifact']).stem + '.json':<24} the artifact as a whole: {figures['sha256']}")
    if "lint" in figures:
        plans = figures["lint"]["plan_bytes"]
        for role, part in figures["parts"].items():
            says = f"builds, a plan of {plans[role] / 1e6:.1f} MB" if role in plans else "refuses it"
            print(f"{part}: TensorRT-RTX {figures['lint']['tensorrt_rtx']} {says}")
