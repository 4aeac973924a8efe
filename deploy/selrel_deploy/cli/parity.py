"""selrel parity."""

from __future__ import annotations

import sys

import click

from selrel_zennit.cli.options import json_option, write_json
from selrel_zennit.clips.spec import ClipSpec
from selrel_zennit.errors import InputError
from selrel_zennit.files import check_writable

from ..artifact.format import Artifact
from ..parity.certificate import Case, Certificate, percent
from ..parity.certify import certify, certify_golden
from ..parity.clips import synthetic_clips, video_clips
from ..runners import Runner
from .runner_options import describe, open_named, runner_options, settings_of

_HEADINGS = ("clip", "target", "output", "error", "max error", "cosine", "Spearman", "sum", "reference", "verdict")


@click.command()
@click.argument("artifact")
@runner_options
@click.option(
    "--against",
    type=click.Choice(["golden", "zennit"]),
    default="golden",
    show_default=True,
    help="Compare with the golden cases of the artifact, or with Zennit itself on other clips (needs torch).",
)
@click.option(
    "--clips",
    "paths",
    multiple=True,
    metavar="PATH",
    help="A video or a folder of frames for --against zennit; may be repeated  [default: three synthetic clips]",
)
@click.option("--model", help="The network for --against zennit  [default: what it was called at the export]")
@click.option("--weights", help="The weight file for --against zennit  [default: where it was at the export]")
@json_option
def parity(
    artifact: str,
    runner: str,
    provider: str | None,
    threads: int | None,
    runner_settings: tuple[str, ...],
    against: str,
    paths: tuple[str, ...],
    model: str | None,
    weights: str | None,
    json_path: str | None,
) -> int:
    """Certify that a runner computes the explanation that ARTIFACT was exported from.

    Logits are compared with the network as it was given: golden cases hold its logits, and with --against zennit the
    network itself runs beside Zennit (the rows "network").

    On three clips or more, each for the top class, the runner-up and the last class. The grade is exact, faithful or
    approximate: the error of relevance is at most 0.1, 1 or 10 % of the distance to the frozen clip's map and to a
    wrong class's. Otherwise it is failed, and the exit code 1.
    """
    given = [name for name, value in (("--clips", paths), ("--model", model), ("--weights", weights)) if value]
    if against == "golden" and given:
        raise InputError(f"{given[0]} goes with --against zennit: golden cases have their own")
    if json_path not in (None, "-"):
        check_writable(json_path)
    # The certificate looks at every case; the runner need not look at one before.
    checks = {"check": False} if runner in ("openvino", "tensorrt") else {}
    with open_named(artifact, runner, provider, threads, **settings_of(runner_settings), **checks) as run:
        read: Artifact = run.artifact  # type: ignore[attr-defined]
        if against == "golden":
            certificate, names = certify_golden(run, read, progress=True), None
        else:
            certificate, names = _against_zennit(run, read, paths, model, weights)
        figures = {
            "artifact": {"file": str(read.path), "sha256": read.sha256},
            "runner": describe(run),
            "against": against,
            "clips": names,
            **certificate.to_dict(),
        }
    write_json(json_path, figures)
    if json_path != "-":
        print(f"{read.path}: {run.name}, {run.provider} on {run.device}, {run.precision}, against {against}")
        print(table(certificate))
        for number, name in enumerate(names or ()):
            print(f"clip {number}: {name}")
        print(certificate)
    if certificate.passed:
        return 0
    print(f"selrel: check failed: {certificate.reasons[0]}; do not use this artifact with {run.name}", file=sys.stderr)
    return 1


def table(certificate: Certificate) -> str:
    """Return the figures of a certificate, one line for each clip, target and output."""
    cases = {(case.clip, case.target): case for case in certificate.cases}
    rows: list[tuple[str, ...]] = [_HEADINGS]
    for row in certificate.comparisons:
        figures = (row.norm_error, row.max_error, row.cosine, row.spearman, row.sum, row.reference_sum)
        formats = ("{:.1e}", "{:.1e}", "{:.6f}", "{:.6f}", "{:.6g}", "{:.6g}")
        target = "top" if row.target == -1 else str(row.target)
        numbers = [form.format(figure) for form, figure in zip(formats, figures, strict=True)]
        rows.append((str(row.clip), target, row.output, *numbers, _verdict(cases[row.clip, row.target], row.output)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = []
    for line in rows:
        cells = [
            cell.ljust(width) if column in (2, 9) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _verdict(case: Case, output: str) -> str:
    if output in ("logits", "network"):
        return "same top class" if case.same_top1 else "ANOTHER TOP CLASS"
    if output == "relevance":
        return f"{case.grade}: {percent(case.of_frozen)} of frozen, {percent(case.of_wrong_class)} of wrong class"
    return f"mask IoU {case.mask_iou:.4f}, {case.mask_strays} strays, {case.mask_flips} flips in the band"


def _against_zennit(
    run: Runner, artifact: Artifact, paths: tuple[str, ...], model: str | None, weights: str | None
) -> tuple[Certificate, list[str]]:
    try:
        from ..parity.zennit_reference import bare_network, rebuild, zennit_reference
    except ModuleNotFoundError as error:
        raise InputError(
            f"--against zennit needs {error.name}, which is not installed: compare with the golden cases, "
            "or pip install selrel-zennit"
        ) from None
    attributor = rebuild(artifact, weights, model)
    spec = ClipSpec.from_dict(artifact.info["clip_spec"])
    clips, names = video_clips(artifact, spec, paths) if paths else synthetic_clips(artifact, spec)
    with attributor:
        reference = zennit_reference(attributor, artifact)
        batch = artifact.clip_shape[0]
        network = bare_network(attributor, artifact)
        certificate = certify(run, reference, clips, artifact.selection, batch=batch, network=network, progress=True)
    return certificate, names
