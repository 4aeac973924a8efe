"""Write the tables of the READMEs from the results: what stands between ``<!-- table NAME -->`` and ``<!-- end -->``.

python benchmarks/readme_tables.py [--check]      exit 1 where --check finds a table that is not what the results say
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from evidence_tables import EVIDENCE
from tables import RESULTS, difference, markdown, number, outcome, percent, rows

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    ROOT / "deploy/README.md",
    ROOT / "docs/explanation/figures.md",
    ROOT / "docs/explanation/evidence.md",
)
BLOCK = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def planted() -> str:
    """Return, for every method, where relevance and motion relevance lie, at 4σ and calibrated."""
    result = read("planted")
    lines = []
    for method, entry in result["methods"].items():
        scores = entry["rows"]
        whole, sigma = scores["none"], scores["default 4σ"]
        calibrated = scores.get("calibrated α = 0.001")
        lines.append(
            [
                f"`{method}`",
                str(entry["clips"]),
                percent(whole["causal_mass"]),
                percent(sigma["causal_mass"]),
                difference(sigma["causal_mass_gain"]),
                f"{percent(whole['distractor_mass'])} → {percent(sigma['distractor_mass'])}",
                f"{percent(sigma['mass'])} / {percent(sigma['frozen_mass'])}",
                f"{percent(calibrated['mass'])} / {percent(calibrated['frozen_mass'])}" if calibrated else "–",
                number(whole["class_cosine"]),
            ]
        )
    head = [
        "method",
        "clips",
        "on the cause: all relevance",
        "on the cause: motion, 4σ",
        "difference to the same area of top relevance",
        "on the distractor, all → motion",
        "kept at 4σ, moving / frozen",
        "kept, calibrated 0.001, moving / frozen",
        "cosine to the runner-up's map",
    ]
    said = "\n".join(f"- {name}: {compared(result, name)}" for name in ("default 4σ", "calibrated α = 0.001"))
    return (
        f"{markdown(head, lines)}\nMore or less of it on the cause than of the same area of top relevance:\n\n{said}\n"
    )


def planted_short() -> str:
    """Return of a few methods where relevance lies, and what a still clip keeps."""
    result, lines = read("planted"), []
    for method in ("gradcam", "dtd", "lrp_epsilon_plus", "lrp_alpha2_beta1", "random"):
        scores = result["methods"][method]["rows"]
        whole, sigma = scores["none"], scores["default 4σ"]
        kept = f"{percent(sigma['mass'])} / {percent(sigma['frozen_mass'])}"
        lines.append([f"`{method}`", percent(whole["causal_mass"]), percent(sigma["causal_mass"]), kept])
    return markdown(["method", "on the cause: all relevance", "motion, 4σ", "kept, moving / standing still"], lines)


def methods_short() -> str:
    """Return what a few methods and a peer cost."""
    wanted = ("forward", "gradcam", "dtd", "captum GuidedGradCam", "pytorch-grad-cam GradCAM")
    table = methods_cost().splitlines()
    found = {line.split("|")[1].strip(): line for line in table[2:]}
    return "\n".join([*table[:2], *(found[name] for name in wanted)]) + "\n"


def latency_short() -> str:
    """Return of every runner in single precision, and the fastest faithful one, the ratio and the parity."""
    head, _, *table = deploy_latency().splitlines()
    columns = (0, 1, 2, 3, 7)
    fastest = ("`inductor`", "`fp32+int8`")

    def cells(line: str) -> list[str]:
        every = [cell.strip() for cell in line.strip("|").split("|")]
        return [every[place] for place in columns]

    kept = [cells(line) for line in table]
    lines = [row for row in kept if row[1] == "`fp32`" or tuple(row[:2]) == fastest]
    return markdown(cells(head), lines)


def compared(result: dict[str, Any], selection: str) -> str:
    """Return which methods put more of their motion relevance on the cause, which less, and which neither."""
    outcomes: dict[str, list[str]] = {"more": [], "less": [], "no clear difference": []}
    for method, _, row in rows(result, selection):
        outcomes[outcome(row["causal_mass_gain"])].append(f"`{method}`")
    return "; ".join(f"{name}: {', '.join(methods) or 'none'}" for name, methods in outcomes.items())


def calibration() -> str:
    """Return the held-out false-positive rates of the calibrations that ship."""
    lines = []
    for row in read("calibration")["rows"]:
        if "impossible" in row:
            lines.append([f"`{row['method']}`", "–", *["not possible"] * 2])
            continue
        rates = [
            f"{100 * level['held_out_rate']:.3g} %" + ("" if level["within_20_percent"] else " (outside ±20 %)")
            for level in row["levels"]
        ]
        lines.append([f"`{row['method']}`", f"{row['clips']} + {row['held_out']}", *rates])
    return markdown(["method", "frozen clips", "α = 1 %", "α = 0.1 %"], lines)


def methods_cost() -> str:
    """Return the cost of the methods on C3D, in forward passes."""
    found = read("methods_cost")["rows"]
    return markdown(
        ["C3D, batch 1", "÷ forward"], ([name, f"{row['over_forward']:.2f}"] for name, row in found.items())
    )


def selection() -> str:
    """Return what the selection of one map of C3D costs."""
    tables = read("selection")["tables"]
    lines = []
    for allocator, table in tables.items():
        found = next(row for row in table["against_conv3d"] if row["shape"][0] == 1 and row["dtype"] == "float32")
        lines.append(
            [
                allocator,
                f"1/{found['conv3d_over_separable_default']:.0f}",
                f"1/{found['conv3d_over_separable_author_2021']:.0f}",
                f"{100 * table['against_dtd']['selection_over_dtd']:.3f} %",
            ]
        )
    head = ["memory of the C library", "÷ conv3d formulation", "the same, preset author-2021", "÷ DTD explanation"]
    return markdown(head, lines)


# What a system writes around a processor's name.
AROUND_A_NAME = re.compile(r"\((?:R|TM)\)|\b(?:CPU|Processor|\d+-Core)\b|@.*", re.IGNORECASE)


def short(processor: str) -> str:
    """Return a processor's name without marks, core count and clock rate: any name, as a system gives it."""
    return " ".join(AROUND_A_NAME.sub(" ", processor).split()) or processor


def deploy_latency() -> str:
    """Return what DTD of C3D costs in every runner and precision: medians, ratios, memory, parity, end to end."""
    found = read("deploy_latency")["precisions"]
    lines = []
    for place, result in enumerate(found.values()):
        for row in result["rows"]:
            # Zennit runs beside every precision; one row of it says what there is to say.
            if row["runner"] == "zennit" and place > 0:
                continue
            ratios, parity, stages = row["ratios"], row["parity"], row["stages"]
            adds = ratios["selection_over_original"]
            error = parity.get("norm_error")
            lines.append(
                [
                    f"`{row['runner']}`",
                    f"`{row['precision']}`",
                    f"{ratios['over_forward']:.2f}",
                    f"{ratios['over_zennit']:.3f}",
                    f"{100 * adds:.2f} %" if adds is not None else "–",
                    f"{row['memory']['peak'] / 1e6:.0f}" if row["memory"]["peak"] is not None else "–",
                    f"{stages['end_to_end']['p99'] / result['budget']:.2f}",
                    parity["grade"] if error is None else f"{parity['grade']}, {100 * error:.2g} %",
                    short(result["machine"]["processor"])
                    + (", huge pages" if result["machine"].get("huge_pages") else ""),
                ]
            )
    head = [
        "runner",
        "precision",
        "÷ its forward",
        "÷ Zennit",
        "selection adds",
        "peak MB",
        "end to end, p99 ÷ 0.5 s",
        "parity, error",
        "processor",
    ]
    return markdown(head, lines)


def networks() -> str:
    """Return, for every network, the worst of its methods against each limit, and some methods' time ÷ forward."""
    lines = []
    for name, by_method in read("networks")["rows"].items():
        entries = list(by_method.values())
        off = max((abs(row["conserved"] - 1) for row in entries if "conserved" in row), default=None)
        by_hand = max((row["hand_placed"] for row in entries if "hand_placed" in row), default=None)
        error = max((1 - row["cosine"] for row in entries if "cosine" in row), default=None)
        tried = [row for row in entries if row.get("refusals") is not None]
        lines.append(
            [
                f"`{name}`",
                str(len(entries)),
                "–" if by_hand is None else f"{by_hand:.0e}",
                "–" if off is None else f"{100 * off:.2g} %",
                "–" if error is None else f"{error:.0e}",
                f"{sum(not row['refusals'] for row in tried)} of {len(tried)}" if tried else "–",
                *(_over_forward(by_method.get(method)) for method in SHOWN),
            ]
        )
    head = ["network", "methods", "to rules by hand", "relevance off by", "1 − cosine, compiled", "TensorRT-RTX builds"]
    return markdown([*head, *(f"`{method}`" for method in SHOWN)], lines)


SHOWN = ("dtd", "lrp_epsilon_plus", "guided_backprop", "gradcam")


def _over_forward(row: dict[str, Any] | None) -> str:
    return "–" if row is None else " / ".join(f"{ratio:.1f}" for ratio in row["over_forward"].values())


def compiled_methods() -> str:
    """Return, for every method that compiles, how true and how large its graph of full-size C3D is."""
    lines = []
    for method, row in read("compiled_methods")["rows"]["c3d"].items():
        lines.append(
            [
                f"`{method}`",
                f"{row['grade']}, {100 * row['norm_error']:.2g} %",
                f"{row['mask_iou']:.4f}",
                str(row["convolutions"]),
                f"{row['plan_over_weights']:.2f}",
                "yes" if row["refusals"] == [] else "no",
            ]
        )
    head = ["method", "certificate, error", "mask IoU", "convolutions", "plan ÷ weights", "TensorRT-RTX builds"]
    return markdown(head, lines)


def split_cost() -> str:
    """Return what the two parts of a split artifact cost."""
    lines = [
        [name, f"{ratio['median']:.2f}", f"{ratio['limit']:.2f}"]
        for name, ratio in read("split_cost")["ratios"].items()
    ]
    return markdown(["ONNX Runtime, medians", "ratio", "limit"], lines)


def huge_pages() -> str:
    """Return what huge pages change in every runner."""
    found = read("huge_pages")["rows"]
    columns = {
        "forward: huge ÷ small": "forward: huge / small",
        "explanation: huge ÷ small": "explanation: huge / small",
        "explanation ÷ forward, small": "small: explanation / forward",
        "explanation ÷ forward, huge": "huge: explanation / forward",
    }
    lines = [
        [f"`{runner}`", *(f"{row['ratios'][name]:.2f}" for name in columns.values())] for runner, row in found.items()
    ]
    return markdown(["C3D, fp32", *columns], lines)


def still_rates() -> str:
    """Return the false-positive rates for the moving clip's class, with two standard errors."""
    lines = []
    for row in read("still_rates")["rows"]:
        cells = [
            f"{100 * rate['rate']:.3g} % ± {200 * rate['error']:.2g}"
            + ("" if rate["within_20_percent"] else " (outside)")
            for rate in row["rates"].values()
        ]
        alarms = "–" if row["alarms"] is None else f"{100 * row['alarms']:.3g} %"
        lines.append([f"`{row['method']}`", *cells, alarms])
    return markdown(["method", "α = 1 %", "α = 0.1 %", "clips with a region at q = 10 %"], lines)


def _evidence(result: str, table: Callable[[dict[str, Any]], str]) -> str:
    return table(read(result))


TABLES: dict[str, Callable[[], str]] = {
    "still_rates": still_rates,
    "planted_short": planted_short,
    "methods_short": methods_short,
    "latency_short": latency_short,
    "planted": planted,
    "calibration": calibration,
    "methods_cost": methods_cost,
    "selection": selection,
    "deploy_latency": deploy_latency,
    "networks": networks,
    "compiled_methods": compiled_methods,
    "split_cost": split_cost,
    "huge_pages": huge_pages,
    **{name: partial(_evidence, *made) for name, made in EVIDENCE.items()},
}


def read(name: str) -> dict[str, Any]:
    """Return results/NAME.json."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def filled(text: str) -> str:
    """Return a page's text with every table made anew. Raises KeyError for a table that does not exist."""
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page is out of date")
    check, stale = parser.parse_args().check, False
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        wanted = filled(text)
        stale |= text != wanted
        if not check:
            page.write_text(wanted, encoding="utf-8")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
