"""selrel evaluate."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from ..evaluate.dataset import read_dataset
from ..evaluate.evaluation import ROWS, Evaluation, chosen, of_these, write_evaluation
from ..evaluate.run import Evaluator, measure_all
from ..evaluate.settings import Settings
from ..evaluate.store import Store
from ..files import check_folder
from ..progress import bar
from .options import json_option, write_json


@click.command()
@click.argument("dataset", required=False)
@click.option("--model", help="A name of `selrel list models`, or package.module:factory  [default: demo]")
@click.option("--weights", help="A weight file, embedded, own or random.")
@click.option("--num-classes", type=click.IntRange(1), help="Classes of the network  [default: the file's]")
@click.option("--methods", help="Names with commas between; random is a map of noise  [default: the paper's and more]")
@click.option("--levels", help="The n of n·σ, with commas between  [default: 1,2,4]")
@click.option("--flows", help="Optical flow: farneback, dis, tvl1, with commas between  [default: farneback,dis]")
@click.option("--clips", type=click.IntRange(1), help="Clips of each video, spread over it  [default: 1, the middle]")
@click.option("--max-videos", type=click.IntRange(1), help="Only so many, evenly chosen  [default: all]")
@click.option("--split", help="[default: test where there is one, else all]")
@click.option("--classes", help="Names with commas between: only these  [default: all]")
@click.option("--root", help="Folder that paths in a table start from  [default: the table's]")
@click.option("--audit/--no-audit", default=None, help="Frozen, shuffled and reversed clips too  [default: yes]")
@click.option("--control", help="Show videos as appearance-free, stripes or still-foreground  [default: as they are]")
@click.option("--seed", type=click.IntRange(0), help="[default: 0]")
@click.option("--settings", "file", help="A settings.toml of an earlier run: repeats it; other options overrule it.")
@click.option("--out", default="evaluation", show_default=True, help="Folder for rows, tables and the report.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes, one thread each.")
@click.option(
    "--shard", help="I/N: every N-th video from the I-th on; only rows are written. Tables: a run without it."
)
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Draw the best and worst clips.")
@json_option
def evaluate(
    dataset: str | None,
    file: str | None,
    out: str,
    workers: int,
    shard: str | None,
    max_videos: int | None,
    pictures: bool,
    json_path: str | None,
    **given: Any,
) -> None:
    """Measure methods and a network on DATASET: the paper's tables, and how much the network needs motion.

    DATASET is synthetic, a folder CLASS/FILE or SPLIT/CLASS/FILE, a folder with a labels.csv, a table (CSV or Parquet
    with the columns path and label, and split, group, start, stop, box or properties), or a split file of UCF-101.
    What was measured before is not measured again, so that a run that was stopped goes on where it was.
    """
    values: dict[str, Any] = {key: _value(key, value) for key, value in given.items() if value is not None}
    if file is not None:
        settings = replace(Settings.read(file), **values)
        settings = settings if dataset is None else replace(settings, dataset=dataset)
    elif dataset is None:
        raise InputError("give a DATASET (synthetic, a folder, a table), or --settings FILE of an earlier run")
    else:
        settings = Settings(dataset, **values)
    check_folder(out)
    store = Store(Path(out) / ROWS)
    place, of = _shard(shard)
    data = read_dataset(settings.dataset, root=settings.root, classes=settings.classes)
    evaluator = Evaluator(settings)
    data = chosen(data, settings, evaluator.measures.model)
    if max_videos is not None and max_videos < len(data):
        step = len(data) / max_videos
        data = replace(data, videos=tuple(data.videos[int(number * step)] for number in range(max_videos)))
    model = evaluator.measures.model if workers == 1 else None
    done = measure_all(data, store, settings, model=model, workers=workers, shard=(place, of), progress=bar)
    for name, why in done.failed.items():
        click.echo(f"left out: {name}: {why}", err=True)
    click.echo(f"{done.clips} clips measured, {done.known} were there")
    if of > 1:
        click.echo(f"wrote rows to {store.folder}; when all {of} shards have, run it without --shard for the tables")
        return
    evaluation = Evaluation(of_these(store.rows(), data, settings, evaluator.network), settings, done)
    write_evaluation(evaluation, data, evaluator, out, pictures)
    for table in evaluation.tables()[:1]:
        click.echo(_plain(table.headings, table.texts()))
    click.echo(f"wrote tables.md, tables.json, tables.csv, tables.tex, report.html, settings.toml to {out}")
    if json_path is not None:
        write_json(json_path, {table.name: table.to_dict() for table in evaluation.tables()})


def _value(key: str, value: Any) -> Any:
    if key not in ("methods", "levels", "flows", "classes"):
        return value
    # Not those inside of an option's list: occlusion:window=[4,16,16].
    names = [name.strip() for name in re.split(r",(?![^\[]*\])", value) if name.strip()]
    if key != "levels":
        return tuple(names)
    try:
        return tuple(float(name) for name in names)
    except ValueError:
        raise InputError(f"--levels takes numbers with commas between, got {value!r}") from None


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    place, _, of = text.partition("/")
    if not (place.isdigit() and of.isdigit() and int(place) < int(of)):
        raise InputError(f"--shard takes I/N with I from 0 to N−1, got {text!r}")
    return int(place), int(of)


def _plain(headings: tuple[str, ...], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in (headings, *rows)]
    return "\n".join("  ".join(line).rstrip() for line in lines)
