"""The benchmark as text. The standard library alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

SPREAD = ("p50", "p90", "p95", "p99", "min", "max")
NOTHING = "–"
# finding of a certificate → mark beside the grade, what it means
_STEPS = ("to_device", "compute", "back")
_MARKS = {
    "class_blind": ("*", "class-blind: maps of different classes hardly differ; graded on the frozen clip alone"),
    "up_to_a_factor": ("†", "it scales each map to 0…1: compared up to a factor"),
}


def table(result: dict[str, Any]) -> str:
    """Return what ``bench_network`` or ``bench_artifact`` found, as tables for a terminal. Times in milliseconds."""
    rows, bare = result["rows"], result["bare"]
    forwards = [one for one in bare if one["name"].startswith("forward")]
    parts = [_heading(result)]
    if forwards:
        parts.append(_forwards(forwards))
    parts.append(_explanations(rows))
    if steps := [one for one in bare if one["name"].startswith(_STEPS)]:
        parts.append(_on_device(steps))
    if any(row["ratios"]["selection_over_original"] is not None for row in rows):
        parts.append(_selections(rows))
    parts.append(_end_to_end(rows, result["budget"]))
    parts.append(_notes(result))
    return "\n\n".join(part for part in parts if part)


def _heading(result: dict[str, Any]) -> str:
    what, clips, found = result.get("model") or result["artifact"], result["clips"], result["conditions"]
    weights = f", weights {what['weights']}" if what.get("weights") else ""
    name = f"{what['model']}{weights}" if "model" in what else f"{what['name']}, {what['sha256'][:12]}"
    before, after = (found[when]["load_average"] for when in ("before", "after"))
    load = f"load average {before:.1f} → {after:.1f}" if before is not None else "load average unknown"
    others = f"other work took {found['others']:.0%} of the cores" if found["others"] is not None else "unknown"
    fill = clips["fill"]
    pages = {True: " · huge pages", False: " · small pages", None: ""}
    lines = [
        f"{name} · {len(clips['windows'])} windows: {clips['source']}",
        f"{result['machine']['processor']} · {result['threads']} threads{pages[result['machine'].get('huge_pages')]}",
        f"{result['rounds']} rounds in turn after {result['warm_up']['seconds']:.1f} s of warm-up · {load} · {others}",
        *(f"WARNING: {text}" for text in result["warnings"]),
        "",
        f"A clip fills in {_ms(fill['seconds'])} ms ({fill['frames']} frames at {fill['fps']:g} per second), "
        "whatever comes after it. Times are in ms.",
    ]
    return "\n".join(lines)


def _forwards(bare: Sequence[dict[str, Any]]) -> str:
    lines = []
    for one in bare:
        parity = one["parity"]
        logits = f"{parity['norm_error']:.0e}" if parity else "reference"
        logits += "" if parity is None or parity["same_top1"] else ", another class"
        lines.append([one["runner"], one["precision"], *_spread(one["stages"]["call"]), _mb(one["memory"]), logits])
    return grid("Forward pass alone", ["runner", "precision", *SPREAD, "peak MB", "logits' error"], lines, 2)


def _on_device(bare: Sequence[dict[str, Any]]) -> str:
    lines = []
    for one in bare:
        step = one["name"].removesuffix(f" {one['runner']}").replace("_", " ")
        lines.append([step, one["runner"], one["precision"], *(fine_ms(one["stages"]["call"][p]) for p in SPREAD)])
    title = "Steps of a call, each waited for, by the processor's clock; copies from and to pinned memory"
    return grid(title, ["step", "runner", "precision", *SPREAD], lines, 3)


def _explanations(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        [
            *_names(row),
            *_spread(row["stages"]["explanation"]),
            _times(row["ratios"]["over_forward"]),
            _times(row["ratios"]["over_zennit"]),
            _mb(row["memory"]),
            parity_of(row),
        ]
        for row in rows
    ]
    head = ["method", "runner", "precision", *SPREAD, "÷ forward", "÷ Zennit", "peak MB", "parity, error"]
    return grid("Explanation, with its selection", head, lines, 3)


def _selections(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        if row["ratios"]["selection_over_original"] is not None:
            selection = row["stages"]["selection"]["p50"]
            lines.append(
                [
                    *_names(row),
                    _ms(row["original_p50"]),
                    _ms(row["stages"]["explanation"]["p50"]),
                    f"{1e3 * selection:.2f}",
                    f"{row['ratios']['selection_over_original']:.2%}",
                    parity_of(row),
                ]
            )
    head = ["method", "runner", "precision", "original", "selective", "selection", "adds", "parity, error"]
    return grid("Original and selective (table 4 of Hiley et al. 2020), medians", head, lines, 3)


def _end_to_end(rows: Sequence[dict[str, Any]], budget: float) -> str:
    paced = any("paced" in row for row in rows)
    lines = []
    for row in rows:
        line = [
            *_names(row),
            _ms(row["stages"]["read"]["p50"]),
            _ms(row["stages"]["explanation"]["p50"]),
            *_spread(row["stages"]["end_to_end"]),
            f"{row['budget']['share']:.0%}",
            "holds" if row["budget"]["held"] else "misses",
        ]
        if paced:
            line += [f"{row['paced']['miss_rate']:.0%}"]
        lines.append([*line, parity_of(row)])
    head = ["method", "runner", "precision", "read+resize", "explanation", *SPREAD]
    head += [f"p99 of {budget:g} s", "verdict", *(["late, paced"] if paced else []), "parity, error"]
    return grid("End to end: one clip after the other, from the file to motion relevance", head, lines, 3)


def _notes(result: dict[str, Any]) -> str:
    lines = [f"left out: {one['method']} {one['runner']} {one['precision']}: {one['why']}" for one in result["skipped"]]
    for row in result["rows"]:
        reasons = row["parity"].get("reasons", [])
        more = f" (and {len(reasons) - 1} more; see --json)" if len(reasons) > 1 else ""
        lines += [f"{row['method']} {row['runner']} {row['precision']}: {text}{more}" for text in reasons[:1]]
    for mark, text in _MARKS.values():
        if any(mark in parity_of(row) for row in result["rows"]):
            lines.append(f"{mark} {text}")
    return "\n".join(lines)


def grid(title: str, head: Sequence[str], lines: Iterable[Sequence[str]], names: int) -> str:
    """Return a title and aligned columns: the first ``names`` and the last to the left, the others to the right."""
    cells = [list(head), *map(list, lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    texts = [
        "  ".join(
            cell.ljust(width) if column < names or column == len(head) - 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join([title, *texts])


def _names(row: dict[str, Any]) -> list[str]:
    return [row["method"], row["runner"], row["precision"]]


def _spread(stage: dict[str, Any]) -> list[str]:
    return [_ms(stage[name]) for name in SPREAD]


def fine_ms(seconds: float) -> str:
    """Return milliseconds to three digits: a GPU takes parts of one."""
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.1f}"


def _times(ratio: float | None) -> str:
    return NOTHING if ratio is None else f"{ratio:.2f}"


def _mb(memory: dict[str, Any]) -> str:
    return NOTHING if memory.get("peak") is None else f"{memory['peak'] / 1e6:.0f}"


def parity_of(row: dict[str, Any]) -> str:
    """Return grade, marks and error of a row."""
    parity = row["parity"]
    marks = "".join(mark for finding, (mark, _) in _MARKS.items() if parity.get(finding))
    error = "" if parity.get("norm_error") is None else f" {parity['norm_error']:.0e}"
    return f"{parity['grade']}{marks}{error}"
