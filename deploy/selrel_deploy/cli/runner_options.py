"""Options that name a runner, and the runner they name. Without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from selrel_zennit.text import key_values

from ..runners import RUNNERS, Runner, open_runner
from ..runners.base import processor

_BY_DEVICE = ("openvino", "tensorrt")

F = TypeVar("F", bound=Callable[..., Any])


def runner_options(command: F) -> F:
    """Add --runner, --provider and --threads."""
    for option in reversed(
        (
            click.option("--runner", default="onnxruntime", show_default=True, help="A name of `selrel list runners`."),
            click.option(
                "--provider",
                help="Execution provider of ONNX Runtime, or device of OpenVINO (CPU) or TensorRT (cuda:0)  "
                "[default: the processor; with TensorRT cuda:0]",
            ),
            click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads  [default: the runtime's own]"),
            runner_option,
        )
    ):
        command = option(command)
    return command


runner_option = click.option(
    "--runner-option",
    "runner_settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the runner, such as tf32=true or (TensorRT) selection=kernel; may be repeated.",
)


def settings_of(texts: Sequence[str]) -> dict[str, Any]:
    """Return what --runner-option says; see ``key_values``."""
    return key_values(texts, "--runner-option")


def open_named(path: str, runner: str, provider: str | None, threads: int | None, **options: Any) -> Runner:
    """Return the runner that the options name, for an artifact. Raises InputError; never another runner or provider."""
    if provider is not None:
        options["device" if runner in _BY_DEVICE else "provider"] = provider
    if threads is not None:
        options["threads"] = threads
    return open_runner(path, runner, **options)


def describe(runner: Runner) -> dict[str, str]:
    """Return what really ran, for JSON; of a runner that no GPU has run before, that too."""
    said = {
        "name": runner.name,
        "device": runner.device,
        "provider": runner.provider,
        "precision": runner.precision,
    }
    status = RUNNERS[runner.name].status
    # OpenVINO and the processor's providers name the processor; a status is of another device.
    return said if not status or runner.device == processor() else {**said, "status": status}
