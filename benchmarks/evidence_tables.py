"""Tables of docs/explanation/evidence.md: real video, networks trained at five biases, which voxels to show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tables import markdown

Result = dict[str, Any]
CONTROLS = ("appearance-free", "stripes", "still-foreground")


def real_classes(result: Result) -> str:
    """Return, for every class of the three sets, the margin, what of it is motion, and the accuracies."""
    names = ("margin", "frozen least", "frozen mean", "frozen greatest", "motion")
    lines = []
    for name, found in result["sets"].items():
        for label, one in found["by class"]["classes"].items():
            figures = [f"{one[key]:.1f}" for key in names]
            accuracies = [f"{100 * one[key]:.0f} %" for key in ("right", "right frozen")]
            lines.append([f"{name}: {label}", *figures, *accuracies, str(one["videos"])])
    head = ["class", "margin", "frozen, least", "mean", "greatest", "motion", "right", "right, frozen", "videos"]
    agreements = [
        f"{name} {found['by class'][key]:.2f}"
        for name, found in result["sets"].items()
        for key in ("Spearman, motion ÷ margin with accuracy lost when frozen",)
        if found["by class"][key] is not None
    ]
    said = "Spearman's correlation over classes of motion ÷ margin with the accuracy that freezing takes"
    return f"{markdown(head, lines)}\n{said}: {', '.join(agreements)}.\n"


def real_audit(result: Result) -> str:
    """Return the audit of the three sets: accuracies as they are, frozen, shuffled, reversed."""
    lines = []
    for name, found in result["sets"].items():
        row = found["tables"]["audit"]["rows"][0]
        measured = found.get("controls", {})
        controls = [_percent(measured[name][1]) if name in measured else "–" for name in CONTROLS]
        lines.append([name, *(_percent(cell) for cell in row[1:5]), str(row[5]), *controls, str(row[6])])
    return markdown(["set", "right", "frozen", "shuffled", "reversed", "motion ÷ margin", *CONTROLS, "videos"], lines)


def real_methods(result: Result) -> str:
    """Return precision, its lift and what 4σ keeps, of every method on the three sets, the published figures beside."""
    lines = []
    for name, found in result["sets"].items():
        precision = {(row[0], row[1]): row for row in found["tables"]["precision_farneback"]["rows"]}
        kept = {row[0]: row for row in found["tables"]["selectivity"]["rows"] if row[1] == "4σ"}
        for method in dict.fromkeys(method for method, _ in precision):
            whole, selected = precision[method, "all"], precision.get((method, "4σ"))
            area = kept[method]
            lines.append(
                [
                    f"{name}: `{method}`",
                    f"{_percent(whole[2])} ({whole[4]})",
                    "–" if selected is None else f"{_percent(selected[2])} ({selected[4]})",
                    f"{_percent(area[2])} / {_percent(area[3])}",
                    f"{_said(whole[5])} → {_said(selected[5] if selected else None)}",
                    f"{_said(area[4])} / {_said(area[5])}",
                ]
            )
    head = [
        "method",
        "precision (÷ base rate)",
        "selective, 4σ",
        "4σ keeps: area / mass",
        "published: precision",
        "published: area / mass",
    ]
    return markdown(head, lines)


def recovered_bias(result: Result) -> str:
    """Return every measure at the five biases, and its correlation with the dial."""
    biases = sorted({one["bias"] for one in result["networks"]})
    lines = []
    for name, found in result["correlations"].items():
        means = []
        for bias in biases:
            values = [one[name] for one in result["networks"] if one["bias"] == bias]
            means.append(f"{sum(values) / len(values):.2f}")
        said = "not defined"
        if found is not None:
            said = f"{found['spearman']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
        lines.append([name, *means, said])
    return markdown(["measure", *(f"bias {bias:g}" for bias in biases), "Spearman with the dial"], lines)


def shown_voxels(result: Result) -> str:
    """Return the share of the shown voxels on the cause, by selector, at three areas."""
    tables = {name: table for name, table in result["tables"].items() if name.endswith("cause")}
    selectors = list(next(iter(tables.values())))
    lines = []
    for selector in selectors:
        cells = []
        for table in tables.values():
            found = table[selector]
            if "more than relevance" in found:
                more = found["more than relevance"]
                ends = f"[{100 * more['low']:+.1f}, {100 * more['high']:+.1f}]"
                cells.append(f"{_percent(found['share'])} ({100 * more['mean']:+.1f} {ends})")
            else:
                cells.append(_percent(found))
        lines.append([selector, *cells])
    return markdown(["shown", *(f"as many as {name.split(',')[0]} keeps" for name in tables)], lines)


def _percent(value: Any) -> str:
    return "–" if value is None else f"{100 * value['mean']:.1f} %"


def _said(value: Any) -> str:
    return "–" if value is None else str(value)


EVIDENCE: dict[str, tuple[str, Callable[[Result], str]]] = {
    "real_classes": ("real_video", real_classes),
    "real_audit": ("real_video", real_audit),
    "real_methods": ("real_video", real_methods),
    "recovered_bias": ("recovered_bias", recovered_bias),
    "shown_voxels": ("shown_voxels", shown_voxels),
}
