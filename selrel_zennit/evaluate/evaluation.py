"""evaluate(): a network, videos and methods in; tables with intervals out."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..files import staged_folder
from ..network.output import logits_of
from ..outputs.notebook import explanation_html
from ..pipeline import explain, spec_of
from ..text import close_names
from .dataset import Dataset, LabelledVideo, read_dataset
from .measures import ANSWERS, RANDOM, Row
from .page import evaluation_html
from .run import Done, Evaluator, Progress, measure_all, network_name
from .settings import METHODS, Settings
from .statistics import Interval, by_video, compared
from .store import Store
from .tables import Table, make_tables

ROWS, SETTINGS = "rows", "settings.toml"
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Rows of an evaluation, and the tables made of them. A row is one method on one clip."""

    rows: list[Row]
    settings: Settings
    done: Done = field(default_factory=Done)

    def __repr__(self) -> str:
        videos = len({row["video"] for row in self.rows})
        return f"Evaluation({len(self.settings.methods)} methods, {videos} videos of {self.settings.dataset})"

    def tables(self) -> list[Table]:
        """Return the tables: the audit, planted causes, precision, agreement, selectivity, overhead."""
        return make_tables(self.rows, self.settings.methods, self.settings.levels, self.settings.flows)

    def table(self, name: str) -> Table:
        """Return one table by name. Raises InputError for one that there is not."""
        having = {table.name: table for table in self.tables()}
        if name not in having:
            raise InputError(f"no table named {name!r}{close_names(name, having)}; there are: {', '.join(having)}")
        return having[name]

    def compare(self, first: str, second: str, score: str) -> tuple[Interval, float]:
        """Return the mean difference of a score between two methods over videos, and its two-sided p: paired bootstrap.

        ``score`` is a name as rows have it: "precision farneback", "mass 4σ", … Raises InputError where a method has no
        such score.
        """
        values = []
        for method in (first, second):
            rows = [row for row in self.rows if row["method"] == method]
            found = by_video(rows, score)
            if not found:
                having = sorted({name for row in rows for name, value in row.items() if isinstance(value, float)})
                said = f"; it has: {', '.join(having)}" if having else ""
                raise InputError(f"{method} has no score {score!r}{said}")
            values.append(found)
        return compared(values[0], values[1])

    def to_pandas(self) -> Any:
        """Return the rows as a pandas DataFrame. Raises InputError where pandas is missing."""
        try:
            import pandas  # type: ignore[import-untyped,unused-ignore]
        except ModuleNotFoundError:
            raise InputError("a DataFrame needs pandas: pip install pandas, or take .rows") from None
        return pandas.DataFrame(self.rows)

    def to_csv(self) -> str:
        """Return all tables as CSV, each after a line with its title."""
        return "\n".join(f"# {table.title}\n{table.to_csv()}" for table in self.tables())

    def to_latex(self) -> str:
        """Return all tables as LaTeX tabulars."""
        return "\n".join(table.to_latex() for table in self.tables())


def evaluate(
    model: nn.Module,
    videos: Dataset | str | Path,
    methods: Sequence[str] = METHODS,
    *,
    store: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """Measure methods, and the network itself, on labelled videos.

    ``videos`` is a data set, or what ``read_dataset`` takes. ``options`` are further fields of ``Settings``: levels,
    flows, clips, audit, split, … With ``store``, a folder, rows are kept there, and those it holds are not measured
    again. What is explained is the network's top class.

    Raises InputError as ``read_dataset`` and ``measure_all`` do, and where the classes are not the network's.
    """
    data = videos if isinstance(videos, Dataset) else read_dataset(videos)
    settings = Settings(dataset=data.name, methods=tuple(methods), **options)
    data = chosen(data, settings, model)
    with tempfile.TemporaryDirectory() as folder:
        rows = Store(store or folder)
        done = measure_all(data, rows, settings, model=model, progress=progress)
        return Evaluation(of_these(rows.rows(), data, settings, network_name(model)), settings, done)


def chosen(data: Dataset, settings: Settings, model: nn.Module) -> Dataset:
    """Return the videos of the split that is asked for, or of test where there is one; checked against the network.

    Raises InputError where the network has another number of classes, or other names.
    """
    split = settings.split or next(
        (name for name in ("test", "validation", "validate", "val") if name in data.splits), None
    )
    names = getattr(model, "class_names", None)
    if names is not None and sorted(names) == sorted(data.classes):
        data = replace(data, classes=tuple(names))
    elif names is not None:
        unknown = sorted(set(data.classes) - set(names))
        if unknown:
            raise InputError(
                f"the network has no class {unknown[0]!r}{close_names(unknown[0], names)}; choose with --classes "
                f"among: {', '.join(names)}"
            )
        data = replace(data, classes=tuple(names))
    with torch.inference_mode():
        count = logits_of(model, torch.zeros(1, *spec_of(model).shape)).shape[1]
    if names is None and count != len(data.classes):
        raise InputError(
            f"{data.name} has {len(data.classes)} classes, the network {count}: give --num-classes {len(data.classes)} "
            "and weights for them, or choose among the videos with --classes"
        )
    return data.part(split) if split is not None else data


def of_these(rows: Iterable[Row], data: Dataset, settings: Settings, network: str) -> list[Row]:
    """Return the rows of a store that belong to an evaluation: its network, its settings, its videos."""
    names = {video.name for video in data}
    return [
        row for row in rows if row["network"] == network and row["settings"] == settings.what and row["video"] in names
    ]


def write_evaluation(
    evaluation: Evaluation, data: Dataset, evaluator: Evaluator, out: str | Path, pictures: bool = True
) -> None:
    """Write tables.md, tables.json, tables.csv, tables.tex, report.html and settings.toml to a folder."""
    tables = evaluation.tables()
    done, settings = evaluation.done, evaluation.settings
    notes = [f"left out: {name}: {why}" for name, why in done.failed.items()]
    if evaluator.measures.unsplit:
        notes.append(f"no motion part: {evaluator.measures.unsplit}")
    videos = len({row["video"] for row in evaluation.rows})
    who = evaluator.network.split()[0]
    lead = f"{who} on {videos} videos of {len(data.classes)} classes; means over videos, 95 % intervals (bootstrap)."
    title = f"Evaluation on {settings.dataset}" + (f", {settings.control}" if settings.control else "")
    clips = _clips(evaluation, data, evaluator) if pictures else {}
    with staged_folder(out) as folder:
        said = "".join(f"- {note}\n" for note in notes)
        text = f"# {title}\n\n{lead}\n\n" + "\n".join(table.to_markdown() for table in tables) + said
        (folder / "tables.md").write_text(text, encoding="utf-8")
        values = {"title": title, "notes": notes, "tables": {table.name: table.to_dict() for table in tables}}
        (folder / "tables.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        (folder / "tables.csv").write_text(evaluation.to_csv(), encoding="utf-8")
        (folder / "tables.tex").write_text(evaluation.to_latex(), encoding="utf-8")
        (folder / "report.html").write_text(evaluation_html(title, lead, tables, clips, notes), encoding="utf-8")
        (folder / SETTINGS).write_text(settings.to_toml(), encoding="utf-8")


def _clips(evaluation: Evaluation, data: Dataset, evaluator: Evaluator) -> dict[str, str]:
    """Return captions and pictures of the clips that the network is surest of, rightly and wrongly."""
    answers = sorted((row for row in evaluation.rows if row["method"] == ANSWERS), key=lambda row: -row["margin"])
    method = next((name for name in evaluation.settings.methods if name != RANDOM), None)
    if method is None:
        return {}
    by_name: dict[str, LabelledVideo] = {video.name: video for video in data}
    found = {}
    for right in (1.0, 0.0):
        for row in [row for row in answers if row["right"] == right][:_SHOWN]:
            video, spec = by_name[row["video"]], evaluator.measures.spec
            clip = torch.from_numpy(spec.from_pixels(spec.pixels(evaluator.shown(video), row["start"])[None]))
            shown = explain(evaluator.measures.model, clip, evaluator.measures.attributors[method], row["predicted"])
            said = "right" if right else f"wrong: it is {row['label']}"
            name = data.classes[row["predicted"]]
            found[f"{video.name}: {name}, {said} (margin {row['margin']:.1f})"] = explanation_html(shown, data.classes)
    return found
