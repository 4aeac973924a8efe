"""The `selrel` command. Its root needs no torch: a command's module is imported when the command is called."""

from __future__ import annotations

import sys
from typing import NamedTuple

import click

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
    "list": _Entry("selrel_zennit.cli.listing:listing", "List methods, models, composites or presets."),
}


class _Root(click.Group):
    """A group that resolves its commands by import strings, so that --help and the device path load nothing heavy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        import importlib

        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            # A device installs with --no-deps; only what it can run is there.
            raise InputError(
                f"selrel {cmd_name} needs {error.name}, which is not installed: pip install selrel-zennit"
            ) from error
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}{close_names(args[0], COMMANDS)}; see selrel --help")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


@click.group(cls=_Root)
@click.version_option(package_name="selrel-zennit", prog_name="selrel")
def root() -> None:
    """Explain video models, and separate motion from scenery."""


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 for a check that failed, 2 for bad input."""
    try:
        code = root.main(args, prog_name="selrel", standalone_mode=False)
    except InputError as error:
        return _fail(str(error))
    except click.ClickException as error:
        return _fail(error.format_message())
    except OSError as error:
        return _fail(f"{error.filename or 'output'}: {error.strerror or error}; make room, or write elsewhere")
    except click.Abort:
        return _fail("interrupted", 130)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int = 2) -> int:
    print(f"selrel: error: {' '.join(message.split())}", file=sys.stderr)
    return code
