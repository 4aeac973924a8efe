"""What a notebook shows of an explanation: the strip and the playing overlay, in HTML that needs nothing else."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..clips.video_writing import write_mp4, write_png
from . import render

if TYPE_CHECKING:
    from ..explanation import Explanation

_RATE = 8.0


def explanation_html(explanation: Explanation, class_names: Sequence[str] | None = None) -> str:
    """Return an explanation as HTML with its pictures inside: the clip in which the network was surest of its class.

    Where the frames are not known, the input is grey. Without ``class_names`` classes are called by their number.
    """
    if not len(explanation):
        return f"<p>{html.escape(repr(explanation))}</p>"
    rows = np.arange(len(explanation))
    shown = int(explanation.probabilities()[rows, explanation.target].argmax())
    one = explanation.clip(shown)
    probabilities = one.probabilities()[0]
    order = np.argsort(-probabilities, kind="stable")[:5]
    share = one.motion_share()
    pixels = one.frames if one.frames is not None else np.full((*one.relevance.shape, 3), 128, np.uint8)

    def named(index: int) -> str:
        return f"class {index}" if class_names is None else class_names[index]

    words = {
        "title": f"clip {shown + 1} of {len(explanation)}" + ("" if one.frames is not None else " · frames not kept"),
        "top5": [(named(int(index)), float(probabilities[index])) for index in order],
        "target_name": named(int(one.target[0])),
        "motion_share": (float(share.area[0]), float(share.mass[0])),
    }
    maps = pixels[0], one.relevance[0], one.motion_relevance[0]
    with tempfile.TemporaryDirectory() as folder:
        strip, overlay = Path(folder) / "strip.png", Path(folder) / "overlay.mp4"
        write_png(strip, render.strip_image(*maps, **words))  # type: ignore[arg-type]
        write_mp4(overlay, render.overlay_frames(*maps, **words), _RATE)  # type: ignore[arg-type]
        picture, video = (base64.b64encode(path.read_bytes()).decode("ascii") for path in (strip, overlay))
    return (
        f"<p><code>{html.escape(repr(explanation))}</code></p>"
        f'<video src="data:video/mp4;base64,{video}" style="max-width:100%" autoplay loop muted controls></video>'
        f'<img src="data:image/png;base64,{picture}" style="max-width:100%" alt="Relevance over time">'
    )
