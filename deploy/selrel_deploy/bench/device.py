"""The benchmark of an artifact, where it will run: without torch, against its golden cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from selrel_zennit.clips.spec import ClipSpec
from selrel_zennit.errors import InputError

from ..artifact.format import Artifact, read_artifact
from ..parity.certify import certify_golden
from ..precisions import RUNS
from ..runners import Runner, open_runner
from .conditions import memory_of
from .report import Pacing, Say, Table, measure, parity_figures, silent
from .rows import Bare, Row, logits_parity
from .timing import Stopwatch
from .windows import Windows, given_windows, synthetic_windows, video_windows

Array = npt.NDArray[Any]

# Those that take a file.
_RUNNERS = ("onnxruntime", "openvino", "tensorrt")


@runtime_checkable
class InSteps(Protocol):
    """A runner whose calls can be timed step by step."""

    def steps(self) -> dict[str, Callable[[Array], None]]:
        """Return the parts of a call by name."""


def bench_artifact(
    path: str | Path,
    runners: Sequence[str],
    paths: Sequence[str],
    pacing: Pacing,
    threads: int,
    provider: str | None = None,
    options: dict[str, Any] | None = None,
    say: Say = silent,
) -> dict[str, Any]:
    """Time an artifact in each of ``runners`` (("all",): those that are installed and run its precision).

    ``paths`` are videos, or none: synthetic clips. ``provider`` is ONNX Runtime's, or OpenVINO's or TensorRT's device;
    ``options`` are others of the one runner that is named. Of TensorRT the copies and what is computed have rows too.
    The forward pass has a row where the artifact is split; in one file it cannot be run alone. Raises InputError for
    what cannot run.
    """
    artifact = read_artifact(path)
    if artifact.clip_shape[0] != 1:
        raise InputError(f"{path} takes {artifact.clip_shape[0]} clips at once: export with batch 1 to benchmark it")
    windows = _windows(artifact, paths)
    every = tuple(runners) == ("all",)
    if every or len(runners) != 1:
        if provider is not None:
            raise InputError(f"--provider {provider} is one runner's: name that one with --runners")
        if options:
            raise InputError("--runner-option is one runner's: name that one with --runners")
    table = Table()
    method = str(artifact.info.get("method") or Path(path).stem)
    with ExitStack() as opened:
        for name in _RUNNERS if every else runners:
            if name not in _RUNNERS:
                raise InputError(f"the runner {name} takes no artifact; there are {', '.join(_RUNNERS)}")
            if every and artifact.precision not in RUNS[name]:
                table.skip(method, name, artifact.precision, "does not run this precision")
                continue
            say(f"preparing {name}")
            try:
                given = file_options(name, threads, provider) | (options or {})
                _add(table, method, artifact, Path(path), name, given, opened)
            except InputError as error:
                if not every:
                    raise
                table.skip(method, name, artifact.precision, str(error))
        if not table.rows:
            raise InputError("; ".join(f"{one['runner']}: {one['why']}" for one in table.skipped))
        about = {
            "artifact": {
                "name": artifact.path.name,
                "sha256": artifact.sha256,
                "split": artifact.split,
                "input": artifact.input,
                "precision": artifact.precision,
                "info": artifact.info,
            },
            "selection": artifact.selection,
            "threads": threads,
        }
        return measure(table, windows, pacing, about, say)


def file_options(runner: str, threads: int, provider: str | None = None) -> dict[str, Any]:
    """Return the options of a runner of artifacts, its provider or device (default: the processor) named."""
    if runner == "tensorrt":
        return {} if provider is None else {"device": provider}
    option, default = {"onnxruntime": ("provider", "CPUExecutionProvider"), "openvino": ("device", "CPU")}[runner]
    return {"threads": threads, option: provider or default}


def _add(
    table: Table, method: str, artifact: Artifact, path: Path, name: str, options: dict[str, Any], opened: ExitStack
) -> None:
    held: list[Runner] = []
    golden = artifact.golden()
    first = golden[artifact.input_name][0]
    memory = memory_of(
        lambda: held.append(opened.enter_context(open_runner(path, name, **options))), lambda: held[0](first, None)
    )
    runner = held[0]
    forward = None
    if artifact.split:
        forward = f"forward {name} {artifact.precision}"
        bare = Bare(forward, name, artifact.precision, lambda clip: runner.forward(clip))
        known = {
            clip.tobytes(): logits for clip, logits in zip(golden[artifact.input_name], golden["logits"], strict=True)
        }
        clips = list(golden[artifact.input_name][::4])
        bare.parity = logits_parity(bare.call, lambda clip: known[clip.tobytes()], clips)
        table.bares[forward] = bare

    for part, call in runner.steps().items() if isinstance(runner, InSteps) else ():
        table.bares[f"{part} {name}"] = Bare(f"{part} {name}", name, artifact.precision, call)

    def step(clip: Array, watch: Stopwatch) -> None:
        runner(clip, None)
        watch.lap("explanation")

    ran = {
        "device": runner.device,
        "provider_asked": options.get("provider", options.get("device")),
        "provider_used": runner.provider,
        "artifact_sha256": artifact.sha256,
    }
    row = Row(method, name, artifact.precision, runner, step, forward, None, ran, memory)
    row.parity = parity_figures(certify_golden(runner, artifact))
    table.rows.append(row)


def _windows(artifact: Artifact, paths: Sequence[str]) -> Windows:
    fields = artifact.info.get("clip_spec")
    if fields is None:
        if paths:
            raise InputError(f"{artifact.path} does not say how frames become a clip: export it with info clip_spec")
        return given_windows(list(artifact.golden()[artifact.input_name][::4]), "golden clip")
    spec = ClipSpec.from_dict(fields)
    raw = artifact.input == "uint8"
    if not paths:
        _, _, height, width, *_ = artifact.input_shape
        return synthetic_windows(spec, (height, width) if raw else None)
    windows = video_windows(paths, spec, raw)
    if raw:
        _check_sizes(windows, artifact)
    return windows


def _check_sizes(windows: Windows, artifact: Artifact) -> None:
    rotation = windows.rotation()
    firsts = {path: index for index, path in reversed(list(enumerate(windows.paths)))}
    for path, index in firsts.items():
        shape = np.shape(rotation.read(index))
        if shape != artifact.input_shape:
            raise InputError(
                f"{path} gives frames {shape}, the artifact takes {artifact.input_shape}: export it with --frame-size "
                f"{shape[2]}x{shape[3]}, or give other clips"
            )
