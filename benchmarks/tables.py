"""Turn results into the Markdown tables of the README and the documentation: figures are generated, never typed.

python benchmarks/tables.py [NAME …]      writes results/NAME.md from results/NAME.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Row = dict[str, dict[str, Any]]


def planted(result: dict[str, Any]) -> str:
    """Return the tables of planted.json: for every selection where the relevance lies, what is kept, and the class."""
    selections = list(dict.fromkeys(name for method in result["methods"].values() for name in method["rows"]))
    parts = [planted_facts(result), "## All relevance\n", planted_whole(result)]
    for name in selections:
        if name != "none":
            parts += [f"## Selection: {name}\n", planted_cause(result, name)]
    parts += ["## Kept, on moving and on frozen clips\n", planted_kept(result)]
    parts += ["## The target's map against the runner-up's\n", planted_classes(result)]
    return "\n".join(parts)


def planted_facts(result: dict[str, Any]) -> str:
    clips, model, versions = result["clips"], result["model"], result["machine"]["versions"]
    network = f"Model `{model['model']}`, weights {model['weights']}"
    drawn = f"{clips['explained']} synthetic clips of seed {clips['seed']} ({clips['which']}, out of {clips['drawn']})"
    return (
        "# Planted causes\n\n"
        f"Generated from `planted.json` by `benchmarks/tables.py`. {network}; {drawn}; zennit {versions['zennit']}, "
        f"torch {versions['torch']}. Shares in %. In brackets: {result['interval']}. The causal sprite covers "
        f"{percent(clips['causal_area'])} % of a clip, the distractor {percent(clips['distractor_area'])} %.\n"
    )


def planted_whole(result: dict[str, Any]) -> str:
    """Return where all relevance lies, method by method."""
    names = ("causal_mass", "distractor_mass", "scene_mass", "rank_accuracy", "flow_precision")
    return markdown(
        ["method", "clips", "mass on cause", "on distractor", "on scene", "rank accuracy", "flow precision", "lift"],
        (
            [
                method,
                str(entry["clips"]),
                *(percent(row[name], True) for name in names),
                number(row["flow_lift"], True),
            ]
            for method, entry, row in rows(result, "none")
        ),
    )


def planted_cause(result: dict[str, Any], selection: str) -> str:
    """Return where motion relevance lies, beside the same number of voxels with the greatest |R|."""
    table = markdown(
        [
            "method",
            "clips",
            "kept area",
            "mass on cause",
            "the same area of top relevance",
            "difference",
            "mass on cause ±1 frame",
            "difference",
            "mass on distractor",
            "difference",
            "rank accuracy",
            "flow precision",
            "flow lift",
        ],
        (
            [
                method,
                # Those of which something is kept at all: of the others the scores are not defined.
                str(row["causal_mass"]["n"]),
                percent(row["area"], True),
                percent(row["causal_mass"], True),
                percent(row["top_causal_mass"], True),
                difference(row["causal_mass_gain"]),
                percent(row["swept_mass"], True),
                difference(row["swept_mass_gain"]),
                percent(row["distractor_mass"], True),
                difference(row["distractor_mass_gain"]),
                percent(row["rank_accuracy"], True),
                percent(row["flow_precision"], True),
                number(row["flow_lift"], True),
            ]
            for method, _, row in rows(result, selection)
        ),
    )
    return f"{table}\n{verdict(result, selection)}\n"


def planted_kept(result: dict[str, Any]) -> str:
    """Return what each selection keeps of clips that move and of clips that do not."""
    found = [
        [
            method,
            selection,
            percent(row["area"], True),
            percent(row["frozen_area"], True),
            percent(row["mass"], True),
            percent(row["frozen_mass"], True),
        ]
        for method, entry in result["methods"].items()
        for selection, row in entry["rows"].items()
        if selection != "none"
    ]
    return markdown(["method", "selection", "area, moving", "area, frozen", "mass, moving", "mass, frozen"], found)


def planted_classes(result: dict[str, Any]) -> str:
    """Return how alike the maps of two classes are: 1 is blind to the class."""
    found = [
        [method, "–" if name == "none" else name, number(row["class_cosine"], True, 3), mask_iou(row)]
        for method, entry in result["methods"].items()
        for name, row in entry["rows"].items()
    ]
    return markdown(["method", "selection", "cosine", "mask IoU"], found)


def mask_iou(row: Row) -> str:
    """Return the overlap of two classes' masks; all relevance has no mask."""
    return number(row["class_mask_iou"], True, 3) if "class_mask_iou" in row else "–"


def verdict(result: dict[str, Any], selection: str) -> str:
    """Return one sentence for each outcome: the methods where selection finds the cause better, worse, or neither."""
    outcomes: dict[str, list[str]] = {"more": [], "less": [], "no clear difference": []}
    for method, _, row in rows(result, selection):
        outcomes[outcome(row["causal_mass_gain"])].append(method)
    return "Mass on the cause, against the same area of top relevance: " + "; ".join(
        f"{name}: {', '.join(methods) or 'none'}" for name, methods in outcomes.items()
    )


def outcome(gain: dict[str, Any]) -> str:
    """Return what an interval says: more (above zero), less (below), or no clear difference."""
    if gain["low"] is None or gain["low"] <= 0 <= gain["high"]:
        return "no clear difference"
    return "more" if gain["low"] > 0 else "less"


def rows(result: dict[str, Any], selection: str) -> Iterable[tuple[str, dict[str, Any], Row]]:
    return (
        (method, entry, entry["rows"][selection])
        for method, entry in result["methods"].items()
        if selection in entry["rows"]
    )


def percent(value: dict[str, Any], with_interval: bool = False) -> str:
    if value["mean"] is None:
        return "–"
    text = f"{100 * value['mean']:.1f}"
    return f"{text} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]" if with_interval else text


def difference(value: dict[str, Any]) -> str:
    """Return a paired difference in points, bold where its interval leaves zero out."""
    if value["mean"] is None:
        return "–"
    mean = f"{100 * value['mean']:+.1f}"
    mean = mean if outcome(value) == "no clear difference" else f"**{mean}**"
    return f"{mean} [{100 * value['low']:+.1f}, {100 * value['high']:+.1f}]"


def number(value: dict[str, Any], with_interval: bool = False, decimals: int = 2) -> str:
    if value["mean"] is None:
        return "–"
    mean, low, high = (f"{value[name]:.{decimals}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if with_interval else mean


def markdown(head: list[str], lines: Iterable[list[str]]) -> str:
    """Return a Markdown table: the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *lines))


def networks(result: dict[str, Any]) -> str:
    """Return the table of networks.json: every network and method, and what was measured of it."""
    versions, limits = result["machine"]["versions"], result["limits"]
    lines = [
        [
            f"`{name}`",
            f"`{method}`",
            "×".join(map(str, row["clip_shape"][2:])),
            f"{row['hand_placed']:.0e}" if "hand_placed" in row else "–",
            f"{row['conserved']:.6f}" if "conserved" in row else "–",
            f"{row['ended']:.4f}" if "ended" in row else "–",
            row.get("grade", "–"),
            f"{1 - row['cosine']:.0e}" if "cosine" in row else "–",
            built(row),
            *(f"{row['over_forward'][runner]:.2f}" if runner in row["over_forward"] else "–" for runner in RUNNERS),
        ]
        for name, methods in result["rows"].items()
        for method, row in methods.items()
    ]
    head = [
        "network",
        "method",
        "clip",
        "to rules by hand",
        "relevance, of 1",
        "of it inside",
        "certificate",
        "1 − cosine",
        "TensorRT-RTX builds",
        *(f"÷ forward, {runner}" for runner in RUNNERS),
    ]
    return (
        "# Networks of the pack\n\n"
        f"Generated from `networks.json` by `benchmarks/tables.py`. Random weights, zennit {versions['zennit']}, torch "
        f"{versions['torch']}. Rules by hand in float64 on a small clip. `relevance` is what arrives at the clip where "
        "no bias takes any, and what ends inside: in X3D-S at units of single-channel convolutions whose products are "
        "all negative, in Swin3D and MViT in the constant of the softmax's expansion and the class token. The rest in "
        "float32 on the clip named, as an artifact in ONNX Runtime against Zennit; Swin3D and MViT do not compile, and "
        f"are measured in torch. Limits: {limits['hand_placed']:g} to rules by hand, {limits['conserved']:g} of the "
        f"relevance, {1 - limits['cosine']:.0e} of the cosine. Time ÷ the forward pass of the same runner, medians of "
        "calls in turns.\n\n"
        f"{markdown(head, lines)}"
    )


RUNNERS = ("eager", "onnxruntime")


def built(row: dict[str, Any]) -> str:
    """Return whether TensorRT-RTX built a network; – where it was not tried."""
    return "–" if row.get("refusals") is None else "no" if row["refusals"] else "yes"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {"planted": planted, "networks": networks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(TABLES)} (default: all with results)")
    names = parser.parse_args().names or [name for name in TABLES if (RESULTS / f"{name}.json").exists()]
    if unknown := [name for name in names if name not in TABLES]:
        parser.error(f"no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    for name in names:
        path = RESULTS / f"{name}.json"
        path.with_suffix(".md").write_text(TABLES[name](json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
        print(f"wrote {path.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
