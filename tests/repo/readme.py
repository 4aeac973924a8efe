"""The README's code blocks, and what is to be done with each. The standard library alone: CI calls it on a bare Python.

    python tests/repo/readme.py NUMBER

prints the README's set-up command with that number, 1 or 2.

A fenced block is ```bash, ```python, or ```text right after one of these: its expected output. A comment on the line
before a block says that it is not a plain one:

    <!-- set-up -->          a command for a fresh environment: CI runs it there
    <!-- not run: REASON -->  nobody runs it; the reason is for the reader of the source

Every other bash and python block is run by tests/repo/test_readme.py, from top to bottom, in one empty folder and one
Python namespace. Blocks in other languages, or in none, are text.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

README = Path(__file__).parents[2] / "README.md"

SET_UP = "set-up"
NOT_RUN = "not run"
RUN = ("bash", "python")


class Block(NamedTuple):
    """A fenced block: its language, its text, its line in the file, and what the comment before it says."""

    language: str
    text: str
    line: int
    mark: str
    reason: str


def blocks(readme: str) -> list[Block]:
    """Return all fenced blocks in order. Raises ValueError on a fence left open and on a comment that marks nothing."""
    found = []
    fence, language, start, mark, reason = "", "", 0, "", ""
    inside: list[str] = []
    for number, line in enumerate(readme.splitlines(), 1):
        if fence:
            if line.strip() == fence:
                found.append(Block(language, "\n".join(inside) + "\n", start, mark, reason))
                fence, mark, reason = "", "", ""
            else:
                inside.append(line)
        elif opening := re.fullmatch(r"(`{3,})(\w*)", line.strip()):
            fence, language, start, inside = opening[1], opening[2], number, []
        elif mark:
            raise ValueError(f"line {number}: the comment <!-- {mark} --> must stand right before a block")
        elif comment := re.fullmatch(r"<!-- *(set-up|not run)(?:: *(\S.*?))? *-->", line.strip()):
            mark, reason = comment[1], comment[2] or ""
    if fence or mark:
        raise ValueError(f"line {start}: a block or a comment is left open at the end")
    return found


def commands(text: str) -> list[str]:
    """Return the commands of a bash block, one for each line that is not empty or a comment; ``\\`` joins lines."""
    joined = text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def set_up_commands(readme: str) -> list[str]:
    """Return the commands that set everything up, in order."""
    return [command for block in blocks(readme) if block.mark == SET_UP for command in commands(block.text)]


if __name__ == "__main__":
    print(set_up_commands(README.read_text(encoding="utf-8"))[int(sys.argv[1]) - 1])
