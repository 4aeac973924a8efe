"""The `selrel` command. Its root needs no torch: a command's module is imported when the command is called."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import click

from .. import plugins
from ..errors import InputError
from ..text import close_names


class _Entry(NamedTuple):
    target: str
    summary: str


COMMANDS = {
    "explain": _Entry("selrel_zennit.cli.explain:explain", "Explain a video: what mattered, and what of it moved."),
    "calibrate": _Entry(
        "selrel_zennit.cli.calibrate:calibrate", "Measure thresholds with a stated false-positive rate."
    ),
    "lint": _Entry(
        "selrel_zennit.cli.lint:lint", "Check that a network conserves relevance, and say where it does not."
    ),
    "export": _Entry("selrel_deploy.cli.export:export", "Write an explanation as one static graph for devices."),
    "parity": _Entry("selrel_deploy.cli.parity:parity", "Certify that a runner computes the same explanation."),
    "run": _Entry("selrel_deploy.cli.run:run", "Explain a video by an artifact, without torch."),
    "live": _Entry("selrel_deploy.cli.live:live", "Explain a camera live, on a page in the browser."),
    "bench": _Entry("selrel_deploy.cli.bench:bench", "Measure what explanations cost, against a budget."),
    "evaluate": _Entry("selrel_zennit.cli.evaluate:evaluate", "Measure methods and a network on labelled videos."),
    "train": _Entry("selrel_zennit.cli.train:train", "Train a network on labelled videos."),
    "list": _Entry("selrel_zennit.cli.listing:listing", "List methods, models, composites, runners or presets."),
}


def resolve(target: str) -> Any:
    """Return what an import string "module:name" means: packages that this one must not import are joined by them."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


class _Root(click.Group):
    """A group that resolves its commands by import strings, so that --help and the device path load nothing heavy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *(name for name in plugins.entry_points(plugins.COMMANDS) if name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            known = cmd_name in plugins.entry_points(plugins.COMMANDS)
            return plugins.load_command(cmd_name) if known else None
        try:
            command: click.Command = resolve(COMMANDS[cmd_name].target)
        except ModuleNotFoundError as error:
            # A device installs with --no-deps; only what it can run is there.
            raise InputError(
                f"selrel {cmd_name} needs {error.name}, which is not installed: pip install selrel-zennit"
            ) from error
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}{close_names(args[0], known)}; see selrel --help")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])
            others = [name for name in self.list_commands(ctx) if name not in COMMANDS]
            if others:
                formatter.write_dl([(name, plugins.summary_of(name)) for name in others])


@click.group(cls=_Root)
@click.version_option(package_name="selrel-zennit", prog_name="selrel")
def root() -> None:
    """Explain video models, and separate motion from scenery."""


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 for a check that failed, 2 for bad input.

    Ended by SIGTERM it is 143, and nothing half written stays behind.
    """
    try:
        with _terminable():
            code = root.main(args, prog_name="selrel", standalone_mode=False)
    except InputError as error:
        return _fail(error.command)
    except click.ClickException as error:
        return _fail(error.format_message())
    except OSError as error:
        return _fail(f"{error.filename or 'output'}: {error.strerror or error}; make room, or write elsewhere")
    except _Terminated:
        return _fail("ended by SIGTERM; nothing half written stays, start it again", 143)
    except click.Abort:
        return _fail("interrupted", 130)
    return code if isinstance(code, int) else 0


class _Terminated(SystemExit):
    """SIGTERM came: what ends a process, so that nobody takes it for an error to go on after."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM (of systemd, of docker stop) end the block as an exception, not the process where it stands."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise _Terminated(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, code: int = 2) -> int:
    print(f"selrel: error: {' '.join(message.split())}", file=sys.stderr)
    return code
