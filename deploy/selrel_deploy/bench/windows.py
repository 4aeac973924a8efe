"""Windows: the clips that a benchmark rotates through, cut from videos or made. NumPy, OpenCV and PyAV alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from selrel_zennit.clips.spec import ClipSpec, Frames
from selrel_zennit.clips.video import iter_frames
from selrel_zennit.errors import InputError
from selrel_zennit.synthetic import SyntheticSpec, demo_frames, make_clip

Array = npt.NDArray[Any]

LEAST, MOST = 16, 64
_VIDEOS = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
# Synthetic clips of a seed that nothing else uses.
_SEED = 5000


@dataclass(frozen=True, eq=False)
class Windows:
    """What is explained: at least 16 clips in turn, each the frames of ``places[i]``, a video and its first frame.

    ``source`` says in words where they come from, ``real`` whether they are filmed. ``finish`` turns the frames of a
    window (uint8 [N,H,W,3]) into what a runner takes. ``made`` holds frames that no file does.
    """

    places: list[tuple[str, int]]
    source: str
    real: bool
    finish: Callable[[Frames], Array]
    span: int
    paths: list[Path] = field(default_factory=list)
    made: list[Array] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.places)

    def rotation(self) -> Rotation:
        """Return a reader of these windows, with a decoder of its own."""
        return Rotation(self)

    def moving(self, count: int) -> list[Array]:
        """Return ``count`` windows, of each part of the rotation the one that moves most: a certificate needs that."""
        rotation = self.rotation()
        clips = [rotation.read(index) for index in range(len(self))]
        moves = [float(np.abs(np.diff(clip.astype(np.float32), axis=_time_axis(clip))).mean()) for clip in clips]
        parts = np.array_split(np.arange(len(self)), min(count, len(self)))
        return [clips[max(part, key=lambda index: moves[index])] for part in parts]


class Rotation:
    """Reads one window after the other: decodes its frames, resizes and scales them.

    As in a player the decoder goes on where it is. ``prepare`` does what a camera need not: it goes to the window's
    first frame where the one before did not end there.
    """

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self._frames: Iterator[Frames] = iter(())
        self._at: tuple[Path, int] | None = None

    def prepare(self, index: int) -> None:
        """Go to where window ``index`` (counted on and on) begins."""
        windows = self.windows
        if windows.made:
            return
        place = index % len(windows)
        wanted = (windows.paths[place], windows.places[place][1])
        if self._at != wanted:
            self._frames = iter_frames(wanted[0])
            next(islice(self._frames, wanted[1], wanted[1]), None)
            self._at = wanted

    def read(self, index: int) -> Array:
        """Return window ``index`` as a runner takes it: clip [1,3,T,H,W], or frames [1,T,H,W,3]."""
        windows = self.windows
        if windows.made:
            return windows.finish(windows.made[index % len(windows)])
        self.prepare(index)
        assert self._at is not None
        path, start = self._at
        frames = list(islice(self._frames, windows.span))
        self._at = (path, start + len(frames))
        return windows.finish(np.stack(frames))


def video_windows(paths: Sequence[str | os.PathLike[str]], spec: ClipSpec, raw: bool = False) -> Windows:
    """Return the windows of videos: those side by side, then those in between, until there are 16 or no more.

    A path is a video, a folder of frames, or a folder of videos. Long videos give their first 64 between them. With
    ``raw`` a runner resizes by itself: a window is its frames as they were filmed. Raises InputError for what cannot
    be read, and for videos too short for 16 different windows.
    """
    videos = [video for path in paths for video in _videos(Path(path))]
    each = -(-MOST // len(videos)) * spec.span
    lengths = {video: sum(1 for _ in iter_frames(video, count=each)) for video in videos}
    places: list[tuple[Path, int]] = []
    # Offsets 0, ½, ¼, ¾ … of a window: each new pass lies as far as it can from those before.
    for offset in sorted(range(spec.span), key=lambda frame: (_depth(frame, spec.span), frame)):
        for video, length in lengths.items():
            last = max(length - spec.span, 0)
            places += [(video, start) for start in range(offset, last + 1, spec.span)]
        if len(places) >= LEAST:
            break
    else:
        raise InputError(
            f"{len(places)} windows of {spec.span} frames in {len(videos)} videos: give longer ones or more, "
            f"{LEAST} are rotated"
        )
    return Windows(
        [(video.name, start) for video, start in places[:MOST]],
        f"{len(videos)} real video{'s' * (len(videos) > 1)}",
        True,
        _sampled(spec) if raw else spec.array,
        spec.span,
        paths=[video for video, _ in places[:MOST]],
    )


def synthetic_windows(spec: ClipSpec, size: tuple[int, int] | None = None) -> Windows:
    """Return the embedded clip and 15 other synthetic ones; ``size`` makes them frames of that height and width."""
    made = [demo_frames(), *(make_clip(SyntheticSpec(), _SEED, index).frames for index in range(LEAST - 1))]
    if size is not None:
        made = [np.stack([cv2.resize(frame, size[::-1]) for frame in frames]) for frames in made]
    return Windows(
        [("embedded clip", 0), *((f"synthetic {index}", 0) for index in range(LEAST - 1))],
        f"the embedded clip and {LEAST - 1} other synthetic ones, from memory: nothing is decoded",
        False,
        _sampled(spec) if size is not None else spec.array,
        spec.span,
        made=list(made),
    )


def given_windows(clips: Sequence[Array], source: str) -> Windows:
    """Return windows of ready-made inputs, such as the golden clips of an artifact."""
    return Windows(
        [(f"{source} {index}", 0) for index in range(len(clips))],
        f"{len(clips)} {source}s, from memory: nothing is decoded or resized",
        False,
        lambda clip: clip,
        1,
        made=list(clips),
    )


def _sampled(spec: ClipSpec) -> Callable[[Frames], Array]:
    """Return a function that picks the frames of a clip and leaves their size alone, uint8 [1,T,H,W,3]."""
    return lambda frames: frames[spec.indices(len(frames))][None]


def _time_axis(clip: Array) -> int:
    """Return the axis of time: 2 of a clip [B,3,T,H,W], 1 of frames [B,T,H,W,3]."""
    return 1 if clip.dtype == np.uint8 else 2


def _videos(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _VIDEOS and file.is_file())
    return found or [path]  # a folder of frames, or one that iter_frames will refuse by name


def _depth(frame: int, span: int) -> int:
    """Return how often a span must be halved until a cut falls on ``frame``; 16 where none does."""
    return next((halvings for halvings in range(16) if (frame << halvings) % span == 0), 16)
