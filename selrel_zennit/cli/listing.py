"""selrel list."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from .. import plugins
from ..errors import InputError
from . import resolve
from .options import json_option, write_json

# Of a package that this one does not import.
_RUNNERS = "selrel_deploy.runners:list_runners"


@click.command("list")
@click.argument("what", type=click.Choice(["methods", "models", "composites", "runners", "presets"]))
@json_option
def listing(what: str, json_path: str | None) -> None:
    """List what there is: name, one line, citation; of methods whether they compile, of runners whether installed."""
    kinds = {
        "methods": _methods,
        "models": _models,
        "composites": _composites,
        "runners": lambda: resolve(_RUNNERS)(),
        "presets": _presets,
    }
    try:
        rows = kinds[what]()
    except ModuleNotFoundError as error:
        raise InputError(
            f"selrel list {what} needs {error.name}, which is not installed: pip install selrel-zennit"
        ) from None
    write_json(json_path, rows)
    if json_path == "-":
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(f"{row['name']:<{width}}  {row['summary']}")
        for key, value in row.items():
            if key not in ("name", "summary") and value not in (None, [], ""):
                click.echo(f"{'':<{width}}    {key}: {', '.join(value) if isinstance(value, list) else value}")


def _methods() -> list[dict[str, Any]]:
    from ..attribution import METHODS

    _warn(plugins.load(plugins.METHODS, METHODS))
    return [
        {
            "name": entry.name,
            "summary": entry.summary,
            "citation": entry.citation,
            "cost": f"about {entry.passes:g} × a forward pass",
            "compilable": "yes" if entry.compilable else "no",
            "options": entry.options,
            "warning": entry.warning,
        }
        for entry in METHODS.values()
    ]


def _models() -> list[dict[str, Any]]:
    from ..models import MODELS

    _warn(plugins.load(plugins.MODELS, MODELS))
    return [
        {
            "name": entry.name,
            "summary": entry.summary,
            "citation": entry.citation,
            "weights": "embedded" if entry.embedded else "pass --weights FILE or random",
        }
        for entry in MODELS.values()
    ]


def _warn(faults: list[str]) -> None:
    """Name the packages whose methods or models cannot be had; the others are listed."""
    for fault in faults:
        click.echo(f"warning: {fault}", err=True)


def _composites() -> list[dict[str, Any]]:
    from zennit.composites import COMPOSITES

    import_module("..composites", __package__)  # registers this package's own

    return [
        {"name": name, "summary": " ".join((composite.__doc__ or "").strip().split("\n\n")[0].split())}
        for name, composite in COMPOSITES.items()
    ]


def _presets() -> list[dict[str, Any]]:
    from ..calibration.thresholds import shipped_for
    from ..models import MODELS
    from ..selection.selections import PRESETS

    rows: list[dict[str, Any]] = [{"name": name, "summary": preset.summary} for name, preset in PRESETS.items()]
    calibrated = {
        "calibrated": "a threshold per frame from still clips, with a stated false-positive rate: `selrel calibrate`",
        "fdr": "regions, tested against still clips, with a stated rate of false discoveries: `selrel calibrate`",
    }
    shipped = {f"shipped for {model}": shipped_for(model) for model in MODELS if shipped_for(model)}
    return [*rows, *({"name": name, "summary": summary, **shipped} for name, summary in calibrated.items())]
