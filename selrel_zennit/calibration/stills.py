"""Stills: the frames that calibration freezes, some to make thresholds from and others to verify them on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..clips.spec import ClipSpec, Frames
from ..clips.video import iter_frames
from ..errors import InputError
from ..synthetic import GENERATOR_VERSION, SyntheticSpec, make_clip

# Synthetic clips of a seed that nothing else uses: neither training nor the embedded clip.
_SEED = 3000
_VIDEOS = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})


@dataclass(frozen=True, eq=False)
class Stills:
    """Frames as the network sees them, each uint8 [H,W,3] RGB of the model's crop size.

    Thresholds are made from ``fit`` and verified on ``held_out``. ``source`` says in words where both came from,
    ``generator_version`` is that of synthetic clips, ``seed`` that of the choice.
    """

    fit: Sequence[Frames]
    held_out: Sequence[Frames]
    source: str
    generator_version: int | None
    seed: int


def synthetic_stills(spec: ClipSpec, clips: int, held_out: int, seed: int = 0) -> Stills:
    """Return one random frame from each of ``clips`` + ``held_out`` synthetic clips, drawn when they are asked for."""
    return Stills(
        _Synthetic(spec, seed, range(clips)),
        _Synthetic(spec, seed, range(clips, clips + held_out)),
        "synthetic clips",
        GENERATOR_VERSION,
        seed,
    )


def video_stills(
    spec: ClipSpec, paths: Sequence[str | os.PathLike[str]], clips: int, held_out: int, seed: int = 0
) -> Stills:
    """Return random frames of videos: about as many of each, at most ``clips`` and ``held_out`` in all.

    A path is a video, a folder of frames, or a folder of videos, however deep they lie. Frames of one video resemble
    each other, so each video serves one of the two purposes only.

    Raises InputError for fewer than two videos, and for one that cannot be read.
    """
    videos = [video for path in paths for video in _videos(Path(path))]
    if len(videos) < 2:
        raise InputError(
            f"{len(videos)} video to calibrate on: give 2 or more, thresholds are verified on others than they are "
            "made from"
        )
    order = np.random.default_rng(seed).permutation(len(videos))
    last = min(max(round(len(videos) * held_out / (clips + held_out)), 1), len(videos) - 1)
    return Stills(
        _drawn(spec, [videos[index] for index in order[last:]], clips, seed),
        _drawn(spec, [videos[index] for index in order[:last]], held_out, seed),
        f"{len(videos)} videos",
        None,
        seed,
    )


class _Synthetic(Sequence[Frames]):
    def __init__(self, spec: ClipSpec, seed: int, indices: range) -> None:
        self.spec, self.seed, self.indices = spec, seed, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Frames:  # type: ignore[override]
        index = self.indices[place]
        frames = make_clip(SyntheticSpec(), _SEED + self.seed, index).frames
        at = np.random.default_rng((self.seed, index)).integers(len(frames))
        pixels: Frames = self.spec.pixels(frames[at : at + 1])[0]
        return pixels


def _videos(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _VIDEOS and file.is_file())
    return found or [path]  # a folder of frames, or one that iter_frames will refuse by name


def _drawn(spec: ClipSpec, videos: list[Path], count: int, seed: int) -> list[Frames]:
    """Draw ``count`` frames, as many of each video as of the others, where there are as many."""
    videos = videos[:count]
    drawn = []
    for number, video in enumerate(videos):
        wanted = count // len(videos) + (number < count % len(videos))
        rng = np.random.default_rng((seed, number))
        kept: list[Frames] = []
        # Reservoir sampling: every frame is as likely, however many there are.
        for seen, frame in enumerate(iter_frames(video)):
            place = seen if seen < wanted else int(rng.integers(seen + 1))
            if place < wanted:
                kept[place : place + 1] = [spec.pixels(frame[None])[0]]
        drawn += kept
    return drawn
