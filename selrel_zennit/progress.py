"""The one progress bar: on a terminal, and none in a pipe. Without torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import click

T = TypeVar("T")

Progress = bool | Callable[[Iterable[Any]], Iterable[Any]]
"""True shows a bar where standard error is a terminal; a function wraps the loop, such as tqdm in a notebook."""


def watched(items: Iterable[T], progress: Progress, label: str = "clips") -> Iterable[T]:
    """Return ``items`` with what shows how far a loop over them is."""
    if callable(progress):
        return progress(items)
    return bar(items, label) if progress else items


def bar(items: Iterable[T], what: str = "clips", length: int | None = None) -> Iterator[T]:
    """Show a progress bar on a terminal, and none in a pipe. click's: a device has no tqdm."""
    if not sys.stderr.isatty():
        yield from items
        return
    with click.progressbar(items, label=what, length=length, file=sys.stderr) as shown:
        yield from shown
