"""selrel lint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import torch

from ..attribution import build_method
from ..clips.video import read_frames
from ..errors import InputError
from ..files import atomic_path
from ..lint.linter import THRESHOLD, LintReport
from ..lint.linter import lint as check
from .options import json_option, method_options, model_options, open_model, write_json


@click.command()
@click.argument("video", required=False)
@model_options
@click.option("--method", default="dtd", show_default=True, help="A name of `selrel list methods`, one with rules.")
@click.option("--option", "pairs", multiple=True, metavar="KEY=VALUE", help="An option of the method; may be repeated.")
@click.option(
    "--threshold",
    type=float,
    default=THRESHOLD,
    show_default=True,
    help="Share of the relevance that a module, or the whole network, may lose or add.",
)
@click.option("--picture", metavar="FILE", help="Draw relevance through the modules into this .png or .svg.")
@json_option
def lint(
    video: str | None,
    method: str,
    pairs: tuple[str, ...],
    threshold: float,
    picture: str | None,
    json_path: str | None,
    **model_settings: Any,
) -> int:
    """Check that a network conserves relevance under a method, on the first clip of VIDEO (without it, on noise).

    Prints relevance in and out of every module, and what is wrong where. The exit code is 1 where something is.
    """
    if picture is not None and Path(picture).suffix not in (".png", ".svg"):
        raise InputError(f"--picture {picture}: give a name that ends in .png or .svg")
    model = open_model(**model_settings)
    attributor = build_method(method, model, **method_options(pairs))
    clip: torch.Tensor | None = None
    if video is not None:
        spec: Any = model.spec
        clip = spec.clip(read_frames(video, count=spec.span)).to(model_settings["device"])
    report = check(model, attributor, clip, threshold=threshold)
    write_json(json_path, report.to_dict())
    if json_path != "-":
        _print(report)
    if picture is not None:
        with atomic_path(picture) as temporary:
            draw(report, Path(temporary), Path(picture).suffix[1:])
    if report.passed:
        return 0
    print(f"selrel: check failed: {len(report.findings)} findings, {report.total}", file=sys.stderr)
    return 1


def _print(report: LintReport) -> None:
    rows = [("module", "kind", "rule", "in", "out", "lost", "")]
    for flow in report.flows:
        lost = f"{flow.lost:+.2%}" if abs(flow.lost) >= 5e-5 else "-"
        sums = (f"{flow.before:.4f}", f"{flow.after:.4f}", lost)
        rows.append((flow.module, flow.kind, flow.rule or "-", *sums, "kept" if flow.kept else ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:{'<' if i < 3 else '>'}{widths[i]}}" for i, cell in enumerate(row)]
        print("  ".join(cells).rstrip())
    print(f"{report.method}: {report.total}")
    for finding in report.findings:
        print(f"{finding.kind}: {finding}")
    if report.passed:
        print("nothing found")


def draw(report: LintReport, path: Path, kind: str) -> None:
    """Draw relevance at the output and at the input of every module, from the logits to the clip."""
    from matplotlib.figure import Figure

    flows = list(reversed(report.flows))
    wrong = {finding.module for finding in report.findings}
    figure = Figure(figsize=(max(6.0, 0.17 * len(flows) + 1.5), 4.2), layout="constrained")
    axes = figure.subplots()
    places = range(len(flows))
    axes.bar(places, [flow.before for flow in flows], width=0.9, color="#c9d3dd", label="reaches the module")
    axes.plot(places, [flow.after for flow in flows], ".", color="#1f4e79", markersize=5, label="leaves it")
    keeping = [(place, flow.before) for place, flow in enumerate(flows) if flow.kept]
    if keeping:
        kept, sums = zip(*keeping, strict=True)
        axes.bar(kept, sums, width=0.9, color="#e0b25c", label="reaches it; it keeps a share, as its rule has it")
    for place, flow in zip(places, flows, strict=True):
        if flow.module in wrong:
            axes.axvspan(place - 0.5, place + 0.5, color="#d1495b", alpha=0.35, linewidth=0)
    axes.axhline(1, color="#444444", linewidth=0.8, linestyle=":")
    axes.set_xticks(list(places), [flow.module for flow in flows], rotation=90, fontsize=6)
    axes.set_xlim(-0.6, len(flows) - 0.4)
    axes.set_ylabel("relevance, begun with 1")
    axes.set_title(f"{report.method}, from the logits (left) to the clip\n{report.total}", fontsize=9)
    axes.legend(fontsize=7, frameon=False, loc="best")
    figure.savefig(path, dpi=120, format=kind)
