"""selrel train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click
import torch

from ..clips.spec import ClipSpec
from ..errors import InputError
from ..evaluate.dataset import read_dataset
from ..models.registry import load_model
from ..training.loop import BEST, CURVES, LAST, LOG
from ..training.loop import train as learn
from ..training.recipes import RECIPES
from .options import json_option, write_json
from .reporting import progress


@click.command()
@click.argument("dataset")
@click.option(
    "--model", default="small3d", show_default=True, help="A name of `selrel list models`, or package.module:factory."
)
@click.option("--recipe", type=click.Choice(list(RECIPES)), default="small", show_default=True, help="How it learns.")
@click.option("--out", default="training", show_default=True, help="Folder for weights, log and curves.")
@click.option("--root", help="Folder that paths in a table start from  [default: the table's]")
@click.option("--classes", help="Names with commas between: only these, in this order  [default: all]")
@click.option("--validation", help="Split that the best weights are chosen on  [default: validation, else test]")
@click.option("--initial", help="A weight file to begin with: of the same network, for any classes.")
@click.option("--epochs", type=click.IntRange(1), help="Times that every video is shown  [default: the recipe's]")
@click.option("--learning-rate", type=float, help="[default: the recipe's]")
@click.option("--batch", type=click.IntRange(2), help="[default: the recipe's]")
@click.option("--flip/--no-flip", default=None, help="Mirror half of the clips  [default: the recipe's]")
@click.option("--frames", type=click.IntRange(2), help="Frames of a clip  [default: the network's]")
@click.option("--stride", type=click.IntRange(1), help="Take every so many frames  [default: the network's]")
@click.option("--short-side", type=click.IntRange(16), help="Pixels of a frame's short side  [default: the network's]")
@click.option("--crop", type=click.IntRange(16), help="Pixels of the square cut out of it  [default: the network's]")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads of torch  [default: torch's own]")
@json_option
def train(
    dataset: str,
    model: str,
    recipe: str,
    out: str,
    root: str | None,
    classes: str | None,
    validation: str | None,
    initial: str | None,
    seed: int,
    threads: int | None,
    json_path: str | None,
    **given: Any,
) -> None:
    """Train a network on DATASET, and write weights that `selrel explain` takes as they are.

    DATASET is a folder CLASS/FILE or SPLIT/CLASS/FILE, a folder with a labels.csv, a table (CSV or Parquet with the
    columns path, label, split), a split file of UCF-101, or synthetic. A training that was stopped goes on where it
    was when the same command is given again.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    data = read_dataset(dataset, root=root, classes=None if classes is None else _names(classes))
    chosen = replace(RECIPES[recipe], **_only(given, "epochs", "learning_rate", "batch", "flip"))
    spec = _spec(model, len(data.classes), _only(given, "frames", "stride", "short_side", "crop"))
    trained = learn(
        data, out, model=model, recipe=chosen, spec=spec, initial=initial, seed=seed, validation=validation,
        progress=progress,
    )  # fmt: skip
    click.echo(
        f"{trained.accuracy:.1%} of the held-out videos are right, {trained.frozen_accuracy:.1%} where they stand still"
    )
    for entry in trained.skipped:
        click.echo(f"left out: {entry['name']}: {entry['why']}", err=True)
    click.echo(f"wrote {BEST}, {LAST}, {LOG}, {CURVES} to {out}")
    click.echo(f"next: selrel explain VIDEO --model {model} --weights {out}/{BEST}")
    if json_path is not None:
        figures = {"accuracy": trained.accuracy, "frozen_accuracy": trained.frozen_accuracy, "minutes": trained.minutes}
        write_json(json_path, {**figures, "skipped": trained.skipped, "epochs": trained.rows})


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _only(given: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: given[name] for name in names if given[name] is not None}


def _spec(model: str, classes: int, changed: dict[str, Any]) -> ClipSpec | None:
    if not changed:
        return None
    own = load_model(model, "random", num_classes=classes).spec
    assert isinstance(own, ClipSpec)
    if "crop" in changed and "short_side" not in changed:
        changed["short_side"] = changed["crop"]
    try:
        return replace(own, **changed)
    except ValueError as error:
        raise InputError(f"these clips cannot be: {error}") from None
