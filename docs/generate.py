"""What the pages take from the program itself: registries, help texts, docstrings and notebooks, as Markdown.

A page names what it wants on a line of its own: ``<!-- generated: methods -->``, ``<!-- generated: api MODULE -->``.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import click

import selrel_zennit

_PLACE = re.compile(r"^<!-- generated: (\w+) ?([\w.]*) -->$", re.M)
_CODE = re.compile(r"``(.+?)``|`([^`]+)`", re.S)
_HELP_WIDTH = 96


def fill(page: str) -> str:
    """Return a page with its generated parts. Raises KeyError for a part that there is not."""
    return _PLACE.sub(lambda place: _PARTS[place[1]](*place[2].split()), page)


def notebook(text: str) -> str:
    """Return a notebook as a page: its code cells become blocks."""
    cells = [("".join(cell["source"]), cell["cell_type"]) for cell in json.loads(text)["cells"]]
    return "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for source, kind in cells) + "\n"


def methods() -> str:
    """Return the table of methods."""
    from selrel_zennit import METHODS

    rows = [
        (
            f"`{entry.name}`",
            entry.summary,
            f"{entry.passes:g}",
            "yes" if entry.compilable else "no",
            ", ".join(f"`{option}`" for option in entry.options) or "-",
            entry.warning or "-",
            entry.citation,
        )
        for entry in METHODS.values()
    ]
    return _table(("name", "what it is", "cost", "compilable", "options", "beware", "source"), rows)


def options() -> str:
    """Return the table of the methods' options, with their defaults and what the builders say of them."""
    from selrel_zennit import METHODS

    rows = []
    for entry in METHODS.values():
        parameters = list(inspect.signature(entry.build).parameters.values())[1:]
        for place, parameter in enumerate(parameters):
            name = f"`{entry.name}`" if place == 0 else ""
            default = "none" if parameter.default is None else f"`{parameter.default}`"
            rows.append((name, f"`{parameter.name}`", default))
    return _table(("method", "option", "default"), rows)


def presets() -> str:
    """Return the table of the selection's presets."""
    from selrel_zennit.selection.selections import PRESETS

    return _table(("preset", "what it is"), [(f"`{name}`", preset.summary) for name, preset in PRESETS.items()])


def commands() -> str:
    """Return one section for each command: what its --help prints."""
    from selrel_zennit.cli import COMMANDS, root

    context = click.Context(root, info_name="selrel")
    parts = []
    for name in COMMANDS:
        command = root.get_command(context, name)
        assert command is not None
        own = click.Context(command, context, info_name=name, terminal_width=_HELP_WIDTH)
        parts.append(f"## selrel {name}\n\n```text\n{command.get_help(own)}\n```\n")
    return "\n".join(parts)


def api(module_name: str) -> str:
    """Return the documentation of a module's public names; what ``selrel_zennit`` itself exports stands there alone."""
    module = importlib.import_module(module_name)
    exported = [] if module is selrel_zennit else [getattr(selrel_zennit, name) for name in selrel_zennit.__all__]
    found: dict[str, list[str]] = {"autofunction": [], "autoclass": [], "constant": []}
    for name in _public(module):
        value = getattr(module, name)
        if any(value is other for other in exported):
            continue
        kind = "autoclass" if inspect.isclass(value) else "autofunction" if callable(value) else "constant"
        found[kind].append(name)
    lines = ["```{eval-rst}", f".. currentmodule:: {module_name}", ""]
    for name in found["autofunction"]:
        lines += [f".. autofunction:: {name}", ""]
    for name in found["autoclass"]:
        lines += [f".. autoclass:: {name}", "   :members:", "   :special-members: __call__", ""]
    lines.append("```")
    constants = [f"- `{module_name}.{name}`: {_constant(getattr(module, name))}" for name in found["constant"]]
    return "\n".join([*lines, "", *constants, ""])


def docstring(lines: Sequence[str]) -> list[str]:
    """Turn a docstring, which is prose and columns, into reStructuredText that says the same."""
    paragraphs = "\n".join(lines).strip("\n").split("\n\n")
    return [*"\n\n".join(map(_paragraph, paragraphs)).splitlines(), ""]


def _public(module: Any) -> list[str]:
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def _constant(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dictionary by name: {', '.join(f'`{key}`' for key in value)}"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value!r}`"


def _paragraph(text: str) -> str:
    rows = text.splitlines()
    if any(row.startswith((" ", ">>>")) or re.search(r"\S {2,}\S", row) for row in rows):
        return "::\n\n" + textwrap.indent(text, "   ")
    out, end = "", 0
    for code in _CODE.finditer(text):
        before, after = text[end : code.start()], text[code.end() : code.end() + 1]
        out += _escaped(before) + (r"\ " if before[-1:].isalnum() else "")
        out += f"``{code[1] or code[2]}``" + (r"\ " if after.isalnum() else "")
        end = code.end()
    return out + _escaped(text[end:])


def _escaped(text: str) -> str:
    return re.sub(r"([\\*|_`])", r"\\\1", text)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


_PARTS = {"methods": methods, "options": options, "presets": presets, "commands": commands, "api": api}
