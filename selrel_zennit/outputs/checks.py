"""The sections of the report that --versus and --check add."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

_CHECK = (
    "The map of the target against that of the runner-up class, and against the maps of the same network after its "
    "layers were drawn anew, one after the other from the last to the first (Adebayo et al. 2018). 1 is the same map. "
    "A map that stays at 1 says nothing about the class, or about the network."
)


def versus_section(summary: Mapping[str, Any], png: bytes | None) -> str:
    """Return the section of ``summary["versus"]`` with its picture, or nothing where there is none."""
    found = summary.get("versus")
    if not found or png is None:
        return ""
    first, second = escape(str(summary["target_name"])), escape(str(found["target_name"]))
    rows = [
        [clip["start"], *(_figure(clip[key]) for key in ("distance", "cosine", "motion_cosine", "mask_iou"))]
        for clip in found["clips"]
    ]
    return (
        f'<section class="strip">\n<h2>{first} or {second}?</h2>\n<figure>\n'
        '<div class="scroll" tabindex="0" role="group" aria-label="Picture of two classes, scrolls sideways">'
        f'<img alt="Relevance for {first}, for {second}, and their difference, over time" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}"></div>\n'
        "<figcaption>Every map is divided by its own sum of |relevance| before they are compared. A distance of 0 is "
        "the same map, 1 nothing in common.</figcaption>\n</figure>\n"
        + _table(["First frame", "Distance", "Cosine", "Cosine of motion relevance", "Mask IoU"], rows)
        + "</section>"
    )


def check_section(summary: Mapping[str, Any]) -> str:
    """Return the section of ``summary["check"]``, or nothing where there is none."""
    found = summary.get("check")
    if not found:
        return ""
    classes = found["class_sensitivity"]
    rows: list[list[Any]] = [["runner-up class", _figure(classes["cosine"]), "", _figure(classes["mask_iou"])]]
    rows += [
        [f"drawn anew down to {layer['layer']}", *(_figure(layer[key]) for key in ("cosine", "spearman", "mask_iou"))]
        for layer in found["layers"]
    ]
    findings = "".join(f"<li>{escape(text)}</li>" for text in found["findings"])
    return (
        f"<section>\n<h2>Does the map depend on the class and on the network?</h2>\n<p>{_CHECK}</p>\n"
        + (f"<ul>{findings}</ul>\n" if findings else "")
        + _table(["Compared with", "Cosine", "Spearman's ρ", "Mask IoU"], rows)
        + "</section>"
    )


def counterfactual_section(summary: Mapping[str, Any]) -> str:
    """Return the bar chart of ``summary["counterfactuals"]``, or nothing where there is none."""
    found = summary.get("counterfactuals")
    if not found:
        return ""
    target = escape(str(summary["target_name"]))
    rows = [("the clip as it is", found["clip"])]
    rows += [(f"frozen to frame {step + 1}", margin) for step, margin in enumerate(found["frozen"])]
    rows += [(f"frames shuffled ({number + 1})", margin) for number, margin in enumerate(found["shuffled"])]
    rows += [("frames reversed", found["reversed"])]
    most = max(abs(margin) for _, margin in rows) or 1.0
    bars = "\n".join(
        f'<tr><th scope="row">{name}</th><td class="bars"><i class="{"up" if margin >= 0 else "down"}" '
        f'style="width:{50 * abs(margin) / most:.1f}%"></i></td><td class="number">{_figure(margin)}</td></tr>'
        for name, margin in rows
    )
    return (
        f"<section>\n<h2>Does {target} need the motion?</h2>\n<p>The margin of {target} over the other classes, of the "
        "clip and of clips made of its frames. Where a frozen clip keeps the margin, a still picture decides.</p>\n"
        f'<table class="plain chart"><tbody>\n{bars}\n</tbody></table>\n</section>'
    )


def _table(headings: list[str], rows: list[list[Any]]) -> str:
    head = f'<th scope="col">{escape(headings[0])}</th>' + "".join(
        f'<th scope="col" class="number">{escape(heading)}</th>' for heading in headings[1:]
    )
    body = "\n".join(
        f'<tr><th scope="row">{escape(str(row[0]))}</th>'
        + "".join(f'<td class="number">{escape(str(cell))}</td>' for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>\n'


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
