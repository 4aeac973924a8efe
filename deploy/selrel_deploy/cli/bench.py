"""selrel bench. Without torch where it benchmarks an artifact."""

from __future__ import annotations

import math
import sys
from typing import Any

import click
from click.core import ParameterSource

from selrel_zennit.cli.options import json_option, model_options, open_model, write_json
from selrel_zennit.clips.spec import ClipSpec
from selrel_zennit.errors import InputError
from selrel_zennit.files import check_writable

from ..bench.conditions import cores
from ..bench.gpu_table import gpu_table
from ..bench.report import Pacing
from ..bench.table import table
from .runner_options import runner_option, settings_of

_LIST = "names with commas between, or all"


@click.command()
@model_options
@click.option("--methods", default="dtd", show_default=True, help=f"Methods: {_LIST} (that compile).")
@click.option("--runners", default="all", show_default=True, help=f"Runners: {_LIST} (that are installed).")
@click.option("--precisions", default="fp32", show_default=True, help=f"Precisions: {_LIST}.")
@click.option("--artifact", help="Benchmark this artifact, without torch, instead of a model.")
@click.option(
    "--provider",
    help="Of an artifact's runner: provider of ONNX Runtime, device of OpenVINO  [default: the processor]",
)
@runner_option
@click.option(
    "--clips",
    "paths",
    multiple=True,
    metavar="PATH",
    help="A video, a folder of frames or a folder of videos; may be repeated  [default: synthetic clips]",
)
@click.option(
    "--budget",
    type=float,
    default=0.5,
    show_default=True,
    help="Seconds for one clip, end to end at the 99th percentile.",
)
@click.option("--batches", default="1,8,32", show_default=True, help="On a GPU: clips per call, with commas between.")
@click.option("--rounds", type=click.IntRange(2), help="Calls of every row  [default: 32; on a GPU 200]")
@click.option("--seconds", type=float, help="Measure for so long instead of a number of rounds.")
@click.option(
    "--paced", is_flag=True, help="Also hand over a clip per 16 frames at 30 per second, and count the late ones."
)
@json_option
def bench(
    methods: str,
    runners: str,
    precisions: str,
    artifact: str | None,
    provider: str | None,
    runner_settings: tuple[str, ...],
    paths: tuple[str, ...],
    budget: float,
    batches: str,
    rounds: int | None,
    seconds: float | None,
    paced: bool,
    json_path: str | None,
    **model_settings: Any,
) -> None:
    """Time explanations: every runner and precision in turn, with its parity, and what a forward pass costs there.

    At least 16 clips are rotated. Rows for Zennit, Captum and pytorch-grad-cam stand beside those of the runners, the
    verdict holds the 99th percentile end to end against the budget. With --artifact a device times one file, without
    torch: --methods and --precisions are those of the file.

    With --device cuda the network is timed on a GPU (built, not run: no GPU has run it yet): eager, inductor and
    inductor as one CUDA graph, by CUDA events, --batches one after the other, copies apart; --precisions also has tf32.
    """
    for option, value in (("--budget", budget), ("--seconds", seconds)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{option} must be a positive number of seconds, got {value:g}")
    if rounds is not None and seconds is not None:
        raise InputError("give --rounds or --seconds, not both")
    if json_path is not None and json_path != "-":
        check_writable(json_path)
    gpu = artifact is None and model_settings["device"] != "cpu"
    if gpu and paced:
        raise InputError("--paced is for the processor: on a GPU the table says how many streams it sustains")
    if not gpu and click.get_current_context().get_parameter_source("batches") is ParameterSource.COMMANDLINE:
        raise InputError("--batches goes with --device cuda; an artifact's batch is its own (selrel export --batch)")
    pacing = Pacing(budget, None if seconds is not None else rounds or (200 if gpu else 32), seconds, paced)
    if artifact is not None:
        _check_artifact_options()
        settings = settings_of(runner_settings)
        result = _artifact(artifact, _names("--runners", runners), paths, pacing, model_settings, provider, settings)
    else:
        if runner_settings:
            raise InputError("--runner-option goes with --artifact; a model on a GPU is timed in every way there is")
        if provider is not None:
            raise InputError("--provider goes with --artifact; a model on a GPU is timed with --device cuda")
        lists = {"methods": methods, "runners": runners, "precisions": precisions}
        chosen = {name: _names(f"--{name}", text) for name, text in lists.items()}
        result = _network(chosen, paths, pacing, model_settings, _numbers(batches) if gpu else None)
    _say("")
    write_json(json_path, result)
    if json_path != "-":
        click.echo(gpu_table(result) if gpu else table(result))
    else:
        for text in result.get("warnings", []):
            print(f"warning: {text}", file=sys.stderr)


def _check_artifact_options() -> None:
    """Raise InputError for an option that an artifact leaves no room for."""
    context = click.get_current_context()
    for name in (
        "model_name",
        "weights",
        "num_classes",
        "output",
        "clip_spec",
        "class_names",
        "device",
        "methods",
        "precisions",
    ):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "--" + name.removesuffix("_name").replace("_", "-")
            raise InputError(f"{option} does not go with --artifact, which holds one method of one model")


def _artifact(
    path: str,
    runners: tuple[str, ...],
    paths: tuple[str, ...],
    pacing: Pacing,
    model_settings: dict[str, Any],
    provider: str | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    from ..bench.device import bench_artifact

    threads = model_settings["threads"] or cores()
    return bench_artifact(path, runners, paths, pacing, threads, provider, settings, _say)


def _network(
    chosen: dict[str, tuple[str, ...]],
    paths: tuple[str, ...],
    pacing: Pacing,
    model_settings: dict[str, Any],
    batches: tuple[int, ...] | None,
) -> dict[str, Any]:
    """Time a model: on the processor, or (with ``batches``) on the CUDA device that --device names."""
    try:
        from ..bench.gpu import GpuChoice, bench_gpu
        from ..bench.network import Choice, bench_network
        from ..bench.windows import synthetic_windows, video_windows
    except ModuleNotFoundError as error:
        raise InputError(
            f"selrel bench of a model needs {error.name}, which is not installed: pip install selrel-zennit, "
            "or give --artifact"
        ) from None

    choice: Choice | GpuChoice = Choice(**chosen)
    if batches is not None:
        choice = GpuChoice(**chosen, device=model_settings["device"], batches=batches)
    choice.method_names()  # wrong names fail here, not after the model is loaded
    choice.pairs()
    if isinstance(choice, GpuChoice):
        choice.where()
    model = open_model(**(model_settings | {"device": "cpu"}))
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ClipSpec):
        raise InputError(f"{model_settings['model_name']} has no ClipSpec: give --clip-spec")
    windows = video_windows(paths, spec) if paths else synthetic_windows(spec)
    if isinstance(choice, GpuChoice):
        return bench_gpu(model, windows, choice, pacing, say=_say)
    return bench_network(model, windows, choice, pacing, say=_say)


def _say(text: str) -> None:
    """Show on a terminal what is being done; nothing in a pipe."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _names(option: str, text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise InputError(f"{option} is empty: give names with commas between, or all")
    if "all" in names and len(names) > 1:
        raise InputError(f"{option}: all stands alone, got {text}")
    return names


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise InputError(f"--batches must be whole numbers above 0 with commas between, got {text!r}")
    return numbers
