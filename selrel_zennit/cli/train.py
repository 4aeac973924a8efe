"""selrel train."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import click
import torch

from ..clips.spec import ClipSpec
from ..errors import InputError
from ..evaluate.dataset import read_dataset
from ..progress import bar
from ..training.checkpoint import BEST, CURVES, LAST, LOG
from ..training.loop import Trained
from ..training.loop import train as learn
from ..training.recipes import RECIPES
from ..training.start import spec_of, starting_network
from .options import json_option, read_spec, torch_device, write_json


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
@click.option("--initial", help="Weights to begin with, of the same network for any classes: a file, embedded or own.")
@click.option("--epochs", type=click.IntRange(1), help="Times that every video is shown  [default: the recipe's]")
@click.option("--learning-rate", type=float, help="[default: the recipe's]")
@click.option("--batch", type=click.IntRange(2), help="Clips that are learnt at a time  [default: the recipe's]")
@click.option("--flip/--no-flip", default=None, help="Mirror half of the clips  [default: the recipe's]")
@click.option("--clip-spec", help="A ClipSpec as a JSON file, or the name of a C3D variant  [default: the network's]")
@click.option("--frames", type=click.IntRange(2), help="Frames of a clip  [default: the network's]")
@click.option("--stride", type=click.IntRange(1), help="Take every so many frames  [default: the network's]")
@click.option("--short-side", metavar="N|HxW", help="Pixels of a frame's short side, or its size  [default: --crop]")
@click.option("--crop", type=click.IntRange(16), help="Pixels of the square cut out of it  [default: the network's]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
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
    clip_spec: str | None,
    device: str,
    seed: int,
    threads: int | None,
    json_path: str | None,
    **given: Any,
) -> None:
    """Train a network on DATASET, and write weights that `selrel explain` takes as they are.

    DATASET is a folder SPLIT/CLASS/FILE, a folder with a labels.csv, a table (CSV or Parquet with the columns path,
    label, split), or synthetic. The split called train is learnt; another is held out. A training that was stopped goes
    on where it was when the same command is given again.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    where = torch_device(device)
    data = read_dataset(dataset, root=root, classes=None if classes is None else _names(classes))
    if len(data.classes) < 2:
        raise InputError(f"{dataset} has one class, {data.classes[0]!r}: a network learns to tell at least two apart")
    chosen = replace(RECIPES[recipe], **_only(given, "epochs", "learning_rate", "batch", "flip"))
    spec = read_spec(clip_spec) if clip_spec is not None else None
    changed = _only(given, "frames", "stride", "short_side", "crop")
    if changed:
        network, _ = starting_network(model, len(data.classes), spec, initial, seed)
        spec = _changed(spec_of(network), changed)
    trained = learn(
        data, out, model=model, recipe=chosen, spec=spec, initial=initial, seed=seed, validation=validation,
        device=where, progress=bar,
    )  # fmt: skip
    _report(trained, model)
    if json_path is not None:
        figures = asdict(trained)
        write_json(json_path, figures | {"folder": str(trained.folder)})


def _report(trained: Trained, model: str) -> None:
    for entry in trained.skipped:
        click.echo(f"left out: {entry['name']}: {entry['why']}", err=True)
    for name, found in (("best", trained.best), ("last", trained.last)):
        said = f", chosen on these: {trained.chosen_on}" if name == "best" else ""
        click.echo(
            f"{name} weights: {found['accuracy']:.1%} of the held-out videos are right, "
            f"{found['frozen accuracy']:.1%} frozen{said}"
        )
    click.echo(f"wrote {BEST}, {LAST}, {LOG}, {CURVES} to {trained.folder}")
    click.echo(f"next: selrel explain VIDEO --model {model} --weights {trained.folder}/{BEST}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _only(given: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: given[name] for name in names if given[name] is not None}


def _changed(own: ClipSpec, changed: dict[str, Any]) -> ClipSpec:
    """Return the ClipSpec with the fields that are given."""
    if "short_side" in changed:
        text = str(changed["short_side"])
        try:
            sides = [int(part) for part in text.lower().split("x")]
        except ValueError:
            raise InputError(f"--short-side {text!r}: give pixels, as 80, or height and width, as 80x128") from None
        changed["short_side"] = sides[0] if len(sides) == 1 else tuple(sides)
    elif "crop" in changed:
        changed["short_side"] = changed["crop"]
    try:
        return replace(own, **changed)
    except ValueError as error:
        raise InputError(f"these clips cannot be: {error}; change --frames, --crop or --short-side") from None
