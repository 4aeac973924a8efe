"""The paper's four tables, the scores against planted causes, and the static-bias audit, made from rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .measures import ANSWERS, Row
from .statistics import Interval, by_video, interval

# Hiley et al. 2020, tables 1 to 3, in per cent: UCF-101, C3D, n = 4.
PUBLISHED = {
    ("precision", "dtd", ""): 27.79, ("precision", "dtd", " 4σ"): 41.09,
    ("precision", "gradcam", ""): 28.17, ("precision", "gradcam", " 4σ"): 36.12,
    ("precision", "guided_backprop", ""): 47.48,
    ("precision", "guided_gradcam", ""): 42.89, ("precision", "guided_gradcam", " 4σ"): 45.76,
    ("area", "dtd", " 4σ"): 7.7, ("area", "gradcam", " 4σ"): 4.7, ("area", "guided_gradcam", " 4σ"): 41.9,
    ("mass", "dtd", " 4σ"): 10.5, ("mass", "gradcam", " 4σ"): 2.6, ("mass", "guided_gradcam", " 4σ"): 36.9,
    ("agreement", "dtd / gradcam", ""): 36.61, ("agreement", "dtd / guided_backprop", ""): 2.79,
    ("agreement", "gradcam / guided_backprop", ""): 0.95,
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table: a title, what is said of it, the headings, and rows of text, numbers and intervals.

    ``unit`` says how numbers are written: "%", "ms" or "" (as they are).
    """

    name: str
    title: str
    note: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    unit: str = "%"

    def __len__(self) -> int:
        return len(self.rows)

    def texts(self) -> list[list[str]]:
        """Return the cells as text: a mean with its interval in brackets."""
        return [[text_of(cell, self.unit) for cell in row] for row in self.rows]

    def to_markdown(self) -> str:
        """Return the table for Markdown."""
        lines = [f"### {self.title}", "", self.note, "", _piped(self.headings), _piped("---" for _ in self.headings)]
        return "\n".join([*lines, *map(_piped, self.texts()), ""])

    def to_latex(self) -> str:
        """Return the table as a LaTeX tabular, with booktabs' rules."""
        columns = "l" + "r" * (len(self.headings) - 1)
        rows = [" & ".join(map(_latex, row)) + r" \\" for row in (self.headings, *self.texts())]
        body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"]
        return "\n".join([f"% {self.title}. {self.note}", *body, r"\end{tabular}", ""])

    def to_csv(self) -> str:
        """Return the table as CSV; an interval takes three columns: mean, low, high."""
        import csv
        import io

        wide = [any(isinstance(row[at], Interval) for row in self.rows) for at in range(len(self.headings))]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        ends = ("", " low", " high")
        writer.writerow([n + end for n, w in zip(self.headings, wide, strict=True) for end in (ends if w else ("",))])
        for row in self.rows:
            cells: list[Any] = []
            for cell, is_wide in zip(row, wide, strict=True):
                if isinstance(cell, Interval):
                    cells += [cell.mean, cell.low, cell.high]
                else:
                    cells += [cell, "", ""] if is_wide else [cell]
            writer.writerow(cells)
        return out.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON takes it."""
        cells = [[cell.to_dict() if isinstance(cell, Interval) else cell for cell in row] for row in self.rows]
        return {"title": self.title, "note": self.note, "unit": self.unit, "headings": self.headings, "rows": cells}


def make_tables(
    rows: Sequence[Row], methods: Sequence[str], levels: Sequence[float], flows: Sequence[str]
) -> list[Table]:
    """Return all tables that the rows can fill, in the order in which a reader wants them."""
    having = [name for name in methods if any(row["method"] == name for row in rows)]
    answers = [row for row in rows if row["method"] == ANSWERS]
    suffixes = ["", *(f" {level:g}σ" for level in levels)]
    makers: list[Callable[[], Table]] = [
        lambda: _audit(answers),
        lambda: _audit_by_property(answers),
        lambda: _boxes(rows, answers, having),
        lambda: _planted(rows, having, suffixes),
        *(lambda flow=flow: _precision(rows, having, suffixes, flow) for flow in (*flows, "exact")),
        lambda: _agreement(rows),
        lambda: _selectivity(rows, having, suffixes[1:]),
        lambda: _overhead(rows, having, suffixes[1:]),
    ]
    return [table for table in (make() for make in makers) if len(table)]


def score(rows: Iterable[Row], method: str, name: str) -> Interval | None:
    """Return a score of a method over videos, with its interval; None where no clip has it."""
    return interval(list(by_video([row for row in rows if row["method"] == method], name).values()))


def _precision(rows: Sequence[Row], methods: Sequence[str], suffixes: Sequence[str], flow: str) -> Table:
    found = []
    for method in methods:
        for suffix in suffixes:
            value = score(rows, method, f"precision {flow}{suffix}")
            if value is not None:
                lift = score(rows, method, f"lift {flow}{suffix}")
                base = score(rows, method, f"base rate {flow}")
                times = "" if lift is None else f"{lift.mean:.2f}"
                found.append(
                    (method, suffix.strip() or "all", value, base, times, _published("precision", method, suffix))
                )
    return Table(
        f"precision_{flow}",
        f"Precision against optical flow ({flow}), table 1",
        "Share of the voxels with positive relevance that have flow. The base rate is the share of all voxels that "
        "have flow: what a map of noise reaches. The lift is the first divided by the second, clip by clip.",
        ("method", "kept", "precision", "base rate", "lift", "published"),
        tuple(found),
    )


def _agreement(rows: Sequence[Row]) -> Table:
    pairs = sorted({row["method"] for row in rows if " / " in row["method"]})
    found = [(pair, score(rows, pair, "agreement"), _published("agreement", pair, "")) for pair in pairs]
    return Table(
        "agreement",
        "Agreement of methods, table 2",
        "Intersection over union of the voxels with positive relevance (at least 10/255 of the map's maximum).",
        ("methods", "agreement", "published"),
        tuple(row for row in found if row[1] is not None),
    )


def _selectivity(rows: Sequence[Row], methods: Sequence[str], suffixes: Sequence[str]) -> Table:
    found = []
    for method in methods:
        for suffix in suffixes:
            area, mass = (score(rows, method, f"{what}{suffix}") for what in ("area", "mass"))
            said = [_published(what, method, suffix) for what in ("area", "mass")]
            if area is not None:
                found.append((method, suffix.strip(), area, mass, *said))
    return Table(
        "selectivity",
        "Selectivity, table 3",
        "What the selection keeps: share of the voxels with relevance, and share of Σ|R|.",
        ("method", "threshold", "area", "mass", "published area", "published mass"),
        tuple(found),
    )


def _overhead(rows: Sequence[Row], methods: Sequence[str], suffixes: Sequence[str]) -> Table:
    found = []
    for method in methods:
        mine = [
            {
                **row,
                "times": row["explanation ms"] / row["forward ms"],
                "more": sum(row[f"selection ms{suffix}"] for suffix in suffixes)
                / len(suffixes)
                / row["explanation ms"],
            }
            for row in rows
            if row["method"] == method and "explanation ms" in row
        ]
        if mine and suffixes and method != "random":
            times, more = score(mine, method, "times"), score(mine, method, "more")
            found.append((method, times, None if more is None else f"{100 * more.mean:.2f} %"))
    return Table(
        "overhead",
        "Overhead, table 4",
        "Time of an explanation by Zennit's hooks, forward pass included, divided by the network's forward pass in the "
        "same process; and what the selection adds to the explanation. For compiled explanations see selrel bench.",
        ("method", "explanation ÷ forward pass", "selection adds"),
        tuple(found),
        unit="",
    )


def _planted(rows: Sequence[Row], methods: Sequence[str], suffixes: Sequence[str]) -> Table:
    names = ("causal_mass", "distractor_mass", "scene_mass", "swept_mass", "rank_accuracy")
    found = []
    for method in methods:
        for suffix in suffixes:
            values = [score(rows, method, f"{name}{suffix}") for name in names]
            if any(value is not None for value in values):
                found.append((method, suffix.strip() or "all", *values))
    return Table(
        "planted",
        "Against the planted cause",
        "Share of Σ|R| on the sprite whose motion is the class, on the distractor, on the scene, on all that the "
        "sprite sweeps from one frame before to one after; and how many of as many top voxels are the sprite's.",
        ("method", "kept", *(name.replace("_", " ") for name in names)),
        tuple(found),
    )


def _audit(answers: Sequence[Row]) -> Table:
    labels = sorted({row["label"] for row in answers})
    found = []
    for label in ("all", *labels):
        mine = [row for row in answers if label in ("all", row["label"])]
        accuracies = [
            score(mine, ANSWERS, name) for name in ("right", "right frozen", "right shuffled", "right reversed")
        ]
        share = _shares(mine)
        found.append((label, *accuracies, share, len({row["video"] for row in mine})))
    return Table(
        "audit",
        "How much does the network need motion?",
        "Share of videos that are named rightly: as they are, with the middle frame in place of all others, with "
        "frames shuffled, reversed. Motion: what the margin over the other classes loses on average when any one frame "
        "stands for all, as a share of the margin of the clip; above 1 where still frames speak against the class.",
        ("class", "accuracy", "frozen", "shuffled", "reversed", "motion ÷ margin", "videos"),
        tuple(found) if answers else (),
    )


def _shares(answers: Sequence[Row]) -> str | None:
    """Return Σ motion ÷ Σ margin: a mean of ratios would be ruled by clips whose margin is near nothing."""
    having = [row for row in answers if "motion" in row]
    total = sum(row["margin"] for row in having)
    return f"{sum(row['motion'] for row in having) / total:.2f}" if having and total > 0 else None


def _audit_by_property(answers: Sequence[Row]) -> Table:
    found = []
    for column in sorted({name for row in answers for name in row if name.startswith("property ")}):
        values = sorted({row[column] for row in answers if column in row})
        for value in values if len(values) <= 40 else ():
            mine = [row for row in answers if row.get(column) == value]
            labels = sorted({row["label"] for row in mine})
            shown = ", ".join(labels[:4]) + (" …" if len(labels) > 4 else "")
            accuracies = [score(mine, ANSWERS, name) for name in ("right", "right frozen")]
            found.append((f"{column.removeprefix('property ')} = {value}", *accuracies, _shares(mine), shown))
    return Table(
        "properties",
        "The same by property",
        "Videos that share a property of the table. One that goes with few classes, and whose videos are right frozen "
        "as well, may be a shortcut; whether the network takes it, covering it tells.",
        ("property", "accuracy", "frozen", "motion ÷ margin", "classes"),
        tuple(found),
    )


def _boxes(rows: Sequence[Row], answers: Sequence[Row], methods: Sequence[str]) -> Table:
    found: list[tuple[Any, ...]] = []
    area = score(rows, methods[0], "box area") if methods else None
    for name, key in (
        ("covered: the margin drops by", "drop covered"),
        ("other boxes of its size: by", "drop other boxes"),
    ):
        value = score(answers, ANSWERS, key)
        if value is not None:
            found.append((name, f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"))
    more = score(answers, ANSWERS, "more than other boxes")
    if more is not None:
        found.append(("drops by more than for another box, share of the boxes", more))
    for key in ("motion part in box", "static part in box"):
        value = score(answers, ANSWERS, key)
        if value is not None:
            found.append((f"{key}, share of its mass", value))
    for method in methods:
        value = score(rows, method, "in box")
        if value is not None:
            found.append((f"{method}: share of Σ|R| in the box", value))
    if found and area is not None:
        found.insert(0, ("the box's share of the clip", area))
    return Table(
        "boxes",
        "The marked box: does the answer hang on it, and do the maps say so?",
        "Covering a box by the colour around it tells whether the answer hangs on it: when the margin drops by more "
        "than for other boxes of its size. Only then should a map put more than the box's share of its mass there.",
        ("what", "value"),
        tuple(found),
    )


def text_of(cell: Any, unit: str) -> str:
    """Return a cell as text; nothing as a dash."""
    if cell is None:
        return "–"
    if isinstance(cell, Interval):
        if unit == "%":
            return f"{100 * cell.mean:.1f} % [{100 * cell.low:.1f}, {100 * cell.high:.1f}]"
        return f"{cell.mean:.2f} [{cell.low:.2f}, {cell.high:.2f}]"
    return f"{cell:g}" if isinstance(cell, float) else str(cell)


def _published(what: str, method: str, suffix: str) -> str | None:
    value = PUBLISHED.get((what, method, suffix))
    return None if value is None else f"{value:g} %"


def _piped(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _latex(text: str) -> str:
    for plain, safe in (("\\", r"\textbackslash "), ("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("#", r"\#")):
        text = text.replace(plain, safe)
    for plain, safe in (("σ", r"$\sigma$"), ("÷", r"$\div$"), ("–", "--"), ("Σ", r"$\Sigma$"), ("|", "$|$")):
        text = text.replace(plain, safe)
    return text
