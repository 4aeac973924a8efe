"""Stills: worlds that stand still, some to make thresholds from and others to verify them on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..clips.spec import ClipSpec, Frames
from ..clips.video import iter_frames
from ..errors import InputError
from ..synthetic import GENERATOR_VERSION, SyntheticSpec, make_clip
from .camera import Camera

# Synthetic clips of a seed that nothing else uses: neither training nor the embedded clip.
_SEED = 3000
_VIDEOS = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})


@dataclass(frozen=True, eq=False)
class Stills:
    """Worlds that stand still, as the network sees them: frames uint8 [H,W,3] RGB of the model's crop size, which a
    ``camera`` films, or clips uint8 [T,H,W,3] of footage.

    Thresholds are made from ``fit`` and verified on ``held_out``. ``source`` says in words where both came from,
    ``generator_version`` is that of synthetic clips, ``seed`` that of the choice.
    """

    fit: Sequence[Frames]
    held_out: Sequence[Frames]
    source: str
    generator_version: int | None
    seed: int
    camera: Camera = field(default_factory=Camera)

    def clip(self, part: Sequence[Frames], index: int, steps: int) -> Frames:
        """Return a still clip uint8 [steps,H,W,3] of ``fit`` or ``held_out``."""
        found = part[index]
        if found.ndim == 4:
            return found
        return self.camera.film(found, steps, (self.seed, int(part is self.held_out), index))


def synthetic_stills(spec: ClipSpec, clips: int, held_out: int, seed: int = 0, camera: Camera | None = None) -> Stills:
    """Return one random frame from each of ``clips`` + ``held_out`` synthetic clips, drawn when they are asked for."""
    camera = camera or Camera()
    return Stills(
        _Synthetic(spec, seed, range(clips)),
        _Synthetic(spec, seed, range(clips, clips + held_out)),
        "synthetic clips" if camera.exact else f"synthetic clips with {camera}",
        GENERATOR_VERSION,
        seed,
        camera,
    )


def video_stills(
    spec: ClipSpec,
    paths: Sequence[str | os.PathLike[str]],
    clips: int,
    held_out: int,
    seed: int = 0,
    camera: Camera | None = None,
) -> Stills:
    """Return random frames of videos: about as many of each, at most ``clips`` and ``held_out`` in all.

    A path is a video, a folder of frames, or a folder of videos, however deep they lie. Frames of one video resemble
    each other, so each video serves one of the two purposes only.

    Raises InputError for fewer than two videos, and for one that cannot be read.
    """
    camera = camera or Camera()
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
        f"{len(videos)} videos" if camera.exact else f"{len(videos)} videos with {camera}",
        None,
        seed,
        camera,
    )


def still_footage(
    spec: ClipSpec, paths: Sequence[str | os.PathLike[str]], clips: int, held_out: int, seed: int = 0
) -> Stills:
    """Return clips of footage in which nothing moves: a camera's own noise, codec and flicker, as they are.

    Each video is cut into successive clips; where it holds too few for the numbers asked for, they overlap. The first
    part of a video makes the thresholds, the last verifies them, without a frame in common, so that one video will do.

    Raises InputError for a video that cannot be read, or that is shorter than two clips.
    """
    videos = [video for path in paths for video in _videos(Path(path))]
    if not videos:
        raise InputError("no footage to calibrate on: give a video of a scene in which nothing moves")
    parts: tuple[list[Frames], list[Frames]] = ([], [])
    for number, video in enumerate(videos):
        wanted = [count // len(videos) + (number < count % len(videos)) for count in (clips, held_out)]
        length = sum(1 for _ in iter_frames(video))
        split = min(max(round(length * clips / (clips + held_out)), spec.span), length - spec.span)
        if split < spec.span:
            raise InputError(f"{video}: {length} frames, still footage needs two clips' worth, {2 * spec.span}")
        for part, low, high, count in zip(parts, (0, split), (split, length), wanted, strict=True):
            starts = np.unique(np.linspace(low, high - spec.span, min(count, high - spec.span - low + 1)).astype(int))
            part += _clips_at(video, spec, starts.tolist())
    return Stills(*parts, f"{len(videos)} video{'s' * (len(videos) > 1)} of a scene that stands still", None, seed)


def _clips_at(video: Path, spec: ClipSpec, starts: list[int]) -> list[Frames]:
    """Return the clips that begin at ``starts``, rising, reading the video once."""
    found: list[Frames] = []
    open_ones: list[tuple[int, list[Frames]]] = []
    waiting = list(starts)
    for at, frame in enumerate(iter_frames(video)):
        if waiting and at == waiting[0]:
            open_ones.append((waiting.pop(0), []))
        for first, held in open_ones:
            if (at - first) % spec.stride == 0:
                held.append(spec.pixels(frame[None])[0])
        while open_ones and len(open_ones[0][1]) == spec.frames:
            found.append(np.stack(open_ones.pop(0)[1]))
        if not waiting and not open_ones:
            break
    return found


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
