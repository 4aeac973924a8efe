"""Videos cut into clips, and frozen ones: how every explanation of a video begins. NumPy, OpenCV and PyAV alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .spec import ClipSpec, Frames
from .video import iter_frames, probe

_RATE = 25.0


class CutClip(NamedTuple):
    """One clip of a video.

    ``start`` is its first frame, ``available`` how many frames there were, at most the clip's span. ``frames`` are
    these, uint8 [N,H,W,3]; ``pixels`` is what the network sees, uint8 [T,crop,crop,3]. ``seconds`` is the time of
    reading and resizing.
    """

    start: int
    available: int
    frames: Frames
    pixels: Frames
    seconds: float


def describe_source(source: str | Path | Frames, spec: ClipSpec) -> tuple[list[str], float]:
    """Return notes on what is done to a video's frames, and its frames per second (25 for an array)."""
    if isinstance(source, np.ndarray):
        return [], _RATE
    info = probe(source)
    notes = list(info.notes)
    if (info.height, info.width) != (spec.crop, spec.crop):
        notes.append(f"{info.width}×{info.height} pixels: {spec.describe_resize()}")
    return notes, info.fps or _RATE


def cut(
    source: str | Path | Frames, spec: ClipSpec, start: int, all_clips: bool, notes: list[str]
) -> Iterator[CutClip]:
    """Yield the clip at ``start``, or all successive clips from there on, an incomplete last one left out.

    ``source`` is a path, or frames uint8 [N,H,W,3]. A single clip that is short is loop padded. ``notes`` takes what
    was left out or padded. Raises InputError for a video that cannot be read or has fewer than 2 frames from ``start``.
    """
    since = time.perf_counter()
    stream: Iterable[Frames] = (
        source[start:]
        if isinstance(source, np.ndarray)
        else iter_frames(source, start, None if all_clips else spec.span)
    )
    held: list[Frames] = []
    first = start
    for frame in stream:
        held.append(frame)
        if len(held) == spec.span:
            yield _clip(first, held, spec, since)
            first, held = first + spec.span, []
            if not all_clips:
                return
            since = time.perf_counter()
    if first > start:
        if held:
            notes.append(f"frames {first}…{first + len(held) - 1}, the last, are no whole clip and left out")
        return
    name = "the frames given" if isinstance(source, np.ndarray) else str(source)
    if len(held) < 2:
        raise InputError(f"{name}: {len(held)} frames from frame {start} on; a motion explanation needs at least 2")
    if len(held) < spec.span:
        notes.append(f"{len(held)} frames from frame {first}: loop padded to {spec.span}")
    yield _clip(first, held, spec, since)


def frozen_frame(steps: int) -> int:
    """Return which of a clip's ``steps`` frames stands in place of all of them when it is frozen: the middle one.

    Every output that speaks of the frozen clip means this one: shares, certificates, golden cases, tables.
    """
    return steps // 2


def freeze(frames: Frames) -> Frames:
    """Return frames [T,H,W,3] with the middle one in place of all others: nothing moves."""
    return np.repeat(frames[frozen_frame(len(frames)) :][:1], len(frames), axis=0)


def _clip(first: int, held: list[Frames], spec: ClipSpec, since: float) -> CutClip:
    frames = np.stack(held)
    return CutClip(first, len(held), frames, spec.pixels(frames), time.perf_counter() - since)
