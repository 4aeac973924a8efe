"""Small texts for messages."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any

from .errors import InputError


def close_names(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x' or 'y'?)"`` for names of ``known`` that resemble ``name``, else nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def one_line(error: BaseException, at_most: int = 160) -> str:
    """Return the first line of what an exception says, or its type where it says nothing; cut off where it is long."""
    text = str(error).strip() or type(error).__name__
    first = text.splitlines()[0].rstrip(".")
    return first if len(first) <= at_most else f"{first[:at_most]}…"


def key_values(pairs: Iterable[str], where: str) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` pairs; a value is JSON where it is valid JSON (4, true, [1,2]), else text.

    A dash in a key is an underscore. Raises InputError, which names ``where``, for what is no pair.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"{where} {pair!r}: give KEY=VALUE")
        try:
            found[key.replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            found[key.replace("-", "_")] = value
    return found
