"""What other packages bring: methods, models and commands by entry points, and anything by "package.module:name".

An entry point of the group ``selrel.methods`` or ``selrel.models`` names what registers it when it is imported; one of
``selrel.commands`` names a click command. Without torch, and nothing is imported before it is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Container
from functools import cache
from importlib import import_module, metadata
from typing import Any

from .errors import InputError
from .text import close_names, one_line

METHODS, MODELS, COMMANDS = "selrel.methods", "selrel.models", "selrel.commands"


@cache
def entry_points(group: str) -> dict[str, metadata.EntryPoint]:
    """Return the entry points of a group by name; of two with one name, the first that is found."""
    found: dict[str, metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=group):
        found.setdefault(point.name, point)
    return found


def load(group: str, registry: Container[str], name: str | None = None) -> list[str]:
    """Import what ``group`` names (all, or one ``name``), so that it registers; return a sentence for each failure."""
    faults = []
    for found, point in entry_points(group).items():
        if found in registry or (name is not None and found != name):
            continue
        try:
            point.load()
        except Exception as error:  # whatever another package raises
            faults.append(f"{_owner(point)}: {found} cannot be imported ({type(error).__name__}: {one_line(error)})")
            continue
        if found not in registry:
            faults.append(f"{_owner(point)}: importing {point.value} did not register {found!r}")
    return faults


def load_command(name: str) -> Any:
    """Return the command of another package. Raises InputError, naming the package, where it cannot be imported."""
    point = entry_points(COMMANDS)[name]
    try:
        return point.load()
    except Exception as error:  # whatever another package raises
        raise InputError(
            f"selrel {name} of {_owner(point)} cannot be imported ({type(error).__name__}: {one_line(error)}): update "
            "that package, or uninstall it"
        ) from None


def import_named(name: str, option: str) -> Any:
    """Return what "package.module:name" names. Raises InputError, naming the ``option``, where there is nothing."""
    module_name, _, attribute = name.partition(":")
    # A console script does not look into the current folder, where a user's own module usually lies.
    sys.path.insert(0, "")
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise InputError(
            f"{name}: cannot import {module_name} ({one_line(error)}); give {option} package.module:name"
        ) from None
    finally:
        sys.path.remove("")
    found = getattr(module, attribute, None)
    if found is None:
        raise InputError(f"{name}: {module_name} has no {attribute!r}{close_names(attribute, dir(module))}")
    return found


def summary_of(name: str) -> str:
    """Return what ``selrel --help`` says of a command of another package."""
    return f"A command of {_owner(entry_points(COMMANDS)[name])}."


def _owner(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
