"""The report: one HTML page that holds everything it shows and asks the network for nothing."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from .checks import check_section, counterfactual_section, versus_section

_SETTINGS = {
    "video": "Video",
    "model": "Model",
    "weights": "Weights",
    "method": "Method",
    "preset": "Selection preset",
    "n_sigma": "Threshold, n σ",
    "alpha": "False-positive rate, α",
    "q": "Rate of false discoveries, q",
    "runner": "Runner",
    "device": "Device",
    "info": "Details",
}
# What the page shows elsewhere.
_OWN_PLACE = {
    "target",
    "target_name",
    "target_probability",
    "top5",
    "clips",
    "overlay",
    "versions",
    "notes",
    "warnings",
    "versus",
    "check",
    "counterfactuals",
    "frozen",
    "methods",
    "explain_when",
}
# Chromium takes addresses of at most 512 MB, and a third is added on the way.
_LARGEST_EMBEDDED = 1 << 28
_SHARES = (
    ("motion_mass", "Motion, share of relevance"),
    ("motion_area", "Motion, share of area"),
    ("frozen_mass", "Frozen clip, share of relevance"),
    ("frozen_area", "Frozen clip, share of area"),
)

_RELATIVE = (
    "The threshold n·σ is relative to the clip's own changes: some voxels nearly always pass it, even in a clip where "
    "nothing moves. So a motion share is not an absolute measurement; compare it only within one model, method and "
    "setting."
)
_FROZEN = (
    "<p><strong>The same, frozen.</strong> The clip was explained again with its middle frame in place of every frame. "
    "Nothing moves then, and the selection still keeps {still} of the relevance, against {mass} in the clip itself: "
    "that much passes without motion.</p>"
)
_THREE_PANELS = (
    "Left: the input. Middle: relevance. Right: the part of the relevance that changes over time; what was kept is "
    "outlined. All frames share one colour scale."
)
_PANELS = (
    "From left to right: the input; what still pictures add to the margin; what motion adds to it, on the same scale; "
    "and the part of the relevance that the selection kept, outlined."
)
_PARTS = (
    '<p><strong class="key">The motion part</strong> is what the margin of the class over the others owes to motion. '
    "The same clip without motion, one of its frames repeated, has a margin too; the difference is motion, and the map "
    "says where it comes from. It sums to that difference, and is exactly 0 where nothing moves. The static part is "
    "the same for the still picture, against a blank one.</p>"
)
_CALIBRATED = (
    "The threshold was calibrated on clips that stand still, so that a known small share passes where nothing moves. "
    "It holds for the model and method it was made for. Between models a motion share is no absolute measurement."
)
_REGIONS = (
    "Regions were tested against clips that stand still. Of such a clip any region is kept with probability q, the "
    "rate of false discoveries. It holds for the model and method that were calibrated."
)


def report_html(summary: Mapping[str, Any], media: Mapping[str, bytes]) -> str:
    """Return a self-contained HTML page about one explanation.

    ``summary`` is what ``summary.json`` holds (model, weights, method, preset, n_sigma, target, target_name, top5,
    clips, runner, device, versions), with ``notes`` and ``warnings``, lists of sentences, and, where known,
    ``target_probability`` and ``overlay``, whose ``speed`` is that of the film against the video's own.
    ``versus`` and ``check`` get sections of their own, further keys are listed among the settings. ``media``:
    ``overlay``, an MP4 file, ``strip``, a PNG file, and, with ``versus``, ``versus``, another. All text is escaped.
    Raises KeyError for a missing ``target_name``, ``top5``, ``clips`` or medium.
    """
    target = str(summary["target_name"])
    clips = list(summary["clips"])
    mass, area, still, still_area = (
        _mean(clip.get(key) for clip in clips) for key in ("motion_mass", "motion_area", "frozen_mass", "frozen_area")
    )
    probability = summary.get("target_probability", dict(summary["top5"]).get(target))
    shares = _SHARES if math.isfinite(still) else _SHARES[:2]
    # A stage is null where it is part of another: an artifact selects inside.
    stages = [
        stage
        for stage in dict.fromkeys(stage for clip in clips for stage in clip.get("seconds", {}))
        if any(clip["seconds"].get(stage) is not None for clip in clips)
    ]
    made_by = [str(summary[key]) for key in ("model", "method") if summary.get(key) is not None]
    count = f"{len(clips)} clip" + ("s" if len(clips) != 1 else "")
    template = Template((Path(__file__).parent / "report.html.in").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"Why {target}? Relevance and motion relevance"),
        target=escape(target),
        lead=escape(", ".join([*made_by, count])),
        facts=_facts(target, probability, mass, area, still, still_area, clips),
        warnings=_sentences("Warnings", summary.get("warnings", ()), "warnings"),
        notes=_sentences("Notes", summary.get("notes", ()), "notes"),
        frozen="" if math.isnan(still) else _FROZEN.format(mass=_percent(mass), still=_percent(still)),
        caveat={"calibrated": _CALIBRATED, "fdr": _REGIONS}.get(str(summary.get("preset")), _RELATIVE),
        panels=_PANELS if any("still" in clip.get("margin", {}) for clip in clips) else _THREE_PANELS,
        parts=_PARTS if any("margin" in clip for clip in clips) else "",
        speed=_speed(summary.get("overlay", {}).get("speed")),
        video=_base64(media["overlay"]),
        strip=_base64(media["strip"]),
        video_alt=escape(f"Video: input, relevance and motion relevance for the class {target}, side by side"),
        strip_alt=escape(
            f"Frames of the clip from left to right in three rows: input, relevance and motion relevance for {target}. "
            f"{_percent(mass)} of the relevance is motion relevance, in {_percent(area)} of the area."
        ),
        versus=versus_section(summary, media.get("versus")),
        check=check_section(summary) + counterfactual_section(summary),
        classes="\n".join(_class_row(str(name), float(p), str(name) == target) for name, p in summary["top5"]),
        shares=_headings(heading for _, heading in shares),
        stages=_headings(f"{stage.replace('_', ' ')}, s" for stage in stages),
        clips="\n".join(_clip_row(clip, [key for key, _ in shares], stages) for clip in clips),
        settings=_settings(summary),
    )


def write_report(path: Path, summary: Mapping[str, Any], media: Mapping[str, bytes], overlay: Path) -> None:
    """Write ``report_html`` into a file, in pieces: ``overlay``, an mp4, is never in memory as a whole.

    A video too long for browsers to play out of a page stays beside it.
    """
    page = report_html(summary, {**media, "overlay": b""})
    # Quotes of other text are escaped: this stands in the page once.
    source = 'src="data:video/mp4;base64,'
    before, _, after = page.partition(source)
    with path.open("w", encoding="utf-8") as file:
        file.write(before)
        if overlay.stat().st_size > _LARGEST_EMBEDDED:
            file.write(f'src="{overlay.name}')
        else:
            file.write(source)
            with overlay.open("rb") as video:
                # A multiple of 3 bytes leaves no padding within.
                while piece := video.read(3 << 18):
                    file.write(_base64(piece))
        file.write(after)


def _facts(
    target: str,
    probability: float | None,
    mass: float,
    area: float,
    still: float,
    still_area: float,
    clips: Sequence[Mapping[str, Any]],
) -> str:
    likely = "not among the top classes" if probability is None else f"probability {_percent(probability)}"
    over = f", mean of {len(clips)} clips" if len(clips) > 1 else ""
    facts = [
        ("Class explained", target, likely, ""),
        *_margin_fact([clip["margin"] for clip in clips if "margin" in clip], over),
        ("Motion relevance", _percent(mass), "of all relevance" + over, ""),
        ("Motion area", _percent(area), "of the voxels with relevance" + over, ""),
    ]
    if math.isfinite(still):
        detail = f"of all relevance, in {_percent(still_area)} of the voxels with relevance"
        facts.append(("The same, frozen", _percent(still), detail + over, ""))
    return "\n".join(
        f"<div><dt>{name}</dt><dd{kind}>{escape(value)}<small>{escape(detail)}</small></dd></div>"
        for name, value, detail, kind in facts
    )


def _margin_fact(margins: Sequence[Mapping[str, Any]], over: str) -> list[tuple[str, str, str, str]]:
    """Return what of the margin is motion, as the first figure; nothing where it was not asked for."""
    if not margins:
        return []
    motion, total, low, high = (
        _mean(margin.get(key) for margin in margins) for key in ("motion", "total", "motion_least", "motion_greatest")
    )
    count = len(margins[0].get("frozen", ()))
    spread = f"; {low:.3g} to {high:.3g} over {count} reference frames" if count > 1 else ""
    value, detail = f"{motion:.3g} of {total:.3g}", f"over the other classes{spread}{over}"
    return [("Motion, of the margin", value, detail, ' class="key"')]


def _class_row(name: str, probability: float, chosen: bool) -> str:
    width = 100 * min(max(probability, 0.0), 1.0) if math.isfinite(probability) else 0.0
    mark, label = (' class="chosen"', f"{name} (explained)") if chosen else ("", name)
    return (
        f'<tr{mark}><td>{escape(label)}<span class="bar"><i style="width:{width:.1f}%"></i></span></td>'
        f'<td class="number">{_percent(probability)}</td></tr>'
    )


def _headings(headings: Iterable[str]) -> str:
    return "\n".join(f'<th scope="col" class="number">{escape(heading)}</th>' for heading in headings)


def _clip_row(clip: Mapping[str, Any], shares: list[str], stages: list[str]) -> str:
    cells = [_percent(_number(clip.get(key))) for key in shares]
    cells.append(_figure(clip.get("relevance_sum")))
    seconds = clip.get("seconds", {})
    cells += ["" if seconds.get(stage) is None else f"{_number(seconds[stage]):.3f}" for stage in stages]
    numbers = "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells)
    return f"<tr><td>{escape(str(clip.get('start', '')))}</td>{numbers}</tr>"


def _settings(summary: Mapping[str, Any]) -> str:
    rows = [(label, summary[key]) for key, label in _SETTINGS.items() if summary.get(key) is not None]
    rows += [
        (key.replace("_", " "), value) for key, value in summary.items() if key not in _SETTINGS.keys() | _OWN_PLACE
    ]
    rows += [("Versions", summary["versions"])] if summary.get("versions") else []
    return "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(_words(value))}</td></tr>' for name, value in rows
    )


def _sentences(heading: str, sentences: Iterable[str], kind: str) -> str:
    items = "".join(f"<li>{escape(str(sentence))}</li>" for sentence in sentences)
    return f'<section class="{kind}">\n<h2>{heading}</h2>\n<ul>{items}</ul>\n</section>' if items else ""


def _speed(speed: float | None) -> str:
    return "" if speed is None or abs(speed - 1) < 0.01 else f" Played at {speed:.2g} of the video's own speed."


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_words(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: Any) -> float:
    # JSON has no NaN: a share of nothing is null there.
    return math.nan if value is None else float(value)


def _mean(values: Iterable[Any]) -> float:
    known = [number for number in map(_number, values) if math.isfinite(number)]
    return sum(known) / len(known) if known else math.nan


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "n/a"


def _figure(value: Any) -> str:
    number = _number(value)
    return f"{number:.4g}" if math.isfinite(number) else "n/a"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
