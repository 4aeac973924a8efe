"""Runs the pages of the README and the documentation, and compares what they show. readme.py tells the conventions."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from repo.readme import NOT_RUN, RUN, SET_UP, Block, blocks, commands
from selrel_zennit.cli import COMMANDS, resolve

TOLERANCE = 1e-3
"""Relative. Numbers that a page shows are compared within it, everything else exactly, trailing spaces aside."""

NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
BIN = Path(sys.executable).parent


def differences(shown: str, printed: str) -> list[str]:
    """Return the lines of a page's output that are not what was printed."""
    expected, got = ([line.rstrip() for line in text.strip("\n").splitlines()] for text in (shown, printed))
    found = [f"{a!r} became {b!r}" for a, b in zip(expected, got, strict=False) if not same(a, b)]
    if len(expected) != len(got):
        found.append(f"{len(expected)} lines became {len(got)}")
    return found


def same(expected: str, got: str) -> bool:
    """Say whether two lines agree: their words exactly, their numbers within the tolerance."""
    if NUMBER.sub("#", expected) != NUMBER.sub("#", got):
        return False
    pairs = zip(NUMBER.findall(expected), NUMBER.findall(got), strict=True)
    return all(math.isclose(*(float(n.replace("−", "-")) for n in pair), rel_tol=TOLERANCE) for pair in pairs)


def run_bash(text: str) -> str:
    """Run a block as a user would, in the current folder; pip and pytest are left to CI. Return what it printed."""
    lines = [" && ".join(left) for line in commands(text) if (left := [c for c in steps(line) if not is_ci(c)])]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
        env=os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    return done.stdout


def steps(command: str) -> list[str]:
    return [step.strip() for step in command.split(" && ")]


def is_ci(step: str) -> bool:
    return step.startswith(("pip install", "python -m pip", "pytest", "python -m pytest"))


def run_python(block: Block, namespace: dict[str, Any], page: Path) -> str:
    printed = io.StringIO()
    # Blank lines before the code: a traceback then names the line of the page.
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)
    return printed.getvalue()


def run_page(page: Path) -> int:
    """Run a page's blocks in the current folder, and hold what they print against the page. Return how many ran."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    printed = None
    ran = 0
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language == "text" and printed is not None:
            wrong = differences(block.text, printed)
            assert not wrong, f"{page.name}, line {block.line}: {wrong}"
        printed = None
        if block.mark != NOT_RUN and block.language in RUN:
            ran += 1
            printed = run_bash(block.text) if block.language == "bash" else run_python(block, namespace, page)
    return ran


def unexplained(page: Path) -> list[str]:
    """Return what is wrong with a page's blocks: another name for bash or python, or one left out without a reason."""
    found = []
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language in {"sh", "shell", "console", "py", "pycon"}:
            found.append(f"line {block.line}: say bash or python")
        elif block.mark == NOT_RUN and not block.reason:
            found.append(f"line {block.line}: <!-- not run: REASON --> lacks its reason")
        elif block.mark != NOT_RUN and block.language == "bash" and block.mark != SET_UP:
            asks = [step for command in commands(block.text) for step in steps(command) if is_ci(step)]
            found += [f"line {block.line}: mark a block that installs as not run, or as set-up"] if asks else []
    return found


def named_options(pages: str) -> dict[str, set[str]]:
    """Return each ``selrel`` command that is named, in bash blocks and in code within a line → its options."""
    fenced = [command for block in blocks(pages) if block.language == "bash" for command in commands(block.text)]
    inline = re.findall(r"`(selrel [^`]+)`", re.sub(r"(?ms)^```.*?^```$", "", pages))
    found: dict[str, set[str]] = {}
    for step in (step for line in [*fenced, *inline] for step in steps(line)):
        words = shlex.split(step, comments=True)
        if len(words) > 1 and words[0] == "selrel" and not words[1].startswith("-"):
            options = {word.partition("=")[0].strip("[]") for word in words[2:] if word.lstrip("[").startswith("-")}
            found.setdefault(words[1], set()).update(options - {"-"})
    return found


def missing_options(pages: str) -> dict[str, set[str]]:
    """Return each ``selrel`` command that is named with options that it does not have → those options."""
    missing = {}
    for command, options in named_options(pages).items():
        if options - listed_options(command):
            missing[command] = options - listed_options(command)
    return missing


def listed_options(command: str) -> set[str]:
    assert command in COMMANDS, f"there is no selrel {command}"
    parameters = resolve(COMMANDS[command].target).params
    names = (name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts))
    return {"--help", *(name for name in names if name.startswith("-"))}
