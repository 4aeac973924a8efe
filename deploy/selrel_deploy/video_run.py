"""A runner on a video: its clips explained, all of them or those in which a class is seen. Without torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from selrel_zennit.clips.cutting import CutClip, cut, describe_source, freeze
from selrel_zennit.clips.spec import ClipSpec, Frames
from selrel_zennit.errors import InputError
from selrel_zennit.explanation import ClipExplanations, Explanation, MotionShare, joined

from .runners.base import Clip, Runner

Logits = npt.NDArray[np.floating[Any]]
Progress = Callable[[Iterable[Any]], Iterable[Any]]

TOP = -1


@dataclass(frozen=True)
class Condition:
    """Explain a clip only where ``target`` (−1: whichever class is on top) has at least this probability.

    Raises InputError on construction for a probability outside 0…1.
    """

    target: int
    probability: float

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError(f"a probability lies in 0…1, got {self.probability}")

    def measure(self, logits: Logits) -> float:
        """Return the probability that counts, of logits [1,K]."""
        exponentials = np.exp(logits[0].astype(np.float64) - logits[0].max())
        probabilities = exponentials / exponentials.sum()
        return float(probabilities.max() if self.target == TOP else probabilities[self.target])


class Seen(NamedTuple):
    """A clip that was looked at: its first frame, its logits [1,K], the probability that counts, whether it was met."""

    start: int
    logits: Logits
    probability: float
    met: bool


class Explained(NamedTuple):
    """The explanation of one clip, and the seconds of the runner that fall to it."""

    explanation: Explanation
    seconds: float


class VideoRun(NamedTuple):
    """What a runner made of a video: explanations (None where no clip met the condition), every clip, and notes."""

    explained: ClipExplanations | None
    seen: list[Seen]
    notes: list[str]


def run_video(
    runner: Runner,
    source: str | Path | Frames,
    spec: ClipSpec,
    target: int = TOP,
    *,
    start: int = 0,
    all_clips: bool = False,
    frozen: bool = True,
    when: Condition | None = None,
    info: dict[str, Any] | None = None,
    progress: Progress = iter,
) -> VideoRun:
    """Explain one clip of a video, or every clip, as ``explain_video`` does.

    A runner of several clips at once gets successive ones; the last batch is filled up with its last clip.

    ``target`` −1 is the top class; with ``all_clips`` the one with the highest mean logit over all clips that are
    explained, for which the video is read twice. ``when`` says which clips to explain; of the others a split artifact
    costs the forward pass alone. ``info`` says what the explanation is. ``progress`` wraps the loops over clips.

    Raises InputError for a video that cannot be read, and for one whose frames have another size than an artifact that
    resizes by itself takes.
    """
    if runner.clip_shape[1:] != spec.shape:
        raise InputError(
            f"the artifact takes clips {runner.clip_shape[1:]}, a video gives {spec.shape}: "
            "its clip_spec is that of another network"
        )
    notes, rate = describe_source(source, spec)
    if when is not None and not runner.split:
        notes.append("the artifact is not split: every clip cost a whole explanation; export it with --split")
    if not all_clips and runner.clip_shape[0] > 1:
        notes.append(f"the artifact explains {runner.clip_shape[0]} clips at once: one alone costs as much as all")
    work = _Work(runner, spec, when)

    def batches() -> Iterator[list[CutClip]]:
        clips = iter(progress(cut(source, spec, start, all_clips, notes)))
        while batch := list(islice(clips, runner.clip_shape[0])):
            yield batch

    first_explained: dict[int, Explained] = {}
    if all_clips and target == TOP:
        total = np.zeros(runner.num_classes)
        for batch in batches():
            for seen, one in work.look(batch, TOP, explain=not runner.split):
                total += seen.logits[0] if seen.met else 0
                if one is not None:
                    first_explained[seen.start] = one
        target = int(total.argmax())
    every: list[Seen] = []
    found: list[tuple[CutClip, Explanation, dict[str, Any]]] = []
    still: list[MotionShare] = []
    for batch in batches():
        known = [first_explained.pop(clip.start, None) for clip in batch]
        looked: list[tuple[Seen, Explained | None]] = [
            (work.seen(clip.start, held.explanation.logits), held)
            for clip, held in zip(batch, known, strict=True)
            if held is not None and held.explanation.target[0] == target
        ]
        if len(looked) < len(batch):
            looked = work.look(batch, target)
        every += [seen for seen, _ in looked]
        met = [(clip, made) for clip, (_, made) in zip(batch, looked, strict=True) if made is not None]
        frozen_seconds = None
        if frozen and met:
            since = time.perf_counter()
            still += work.frozen_shares(met)
            frozen_seconds = (time.perf_counter() - since) / len(met)
        for clip, made in met:
            # The selection runs inside the artifact, where nobody can time it apart.
            seconds_of: dict[str, Any] = {"read": clip.seconds, "forward_backward": made.seconds, "select": None}
            if frozen_seconds is not None:
                seconds_of["frozen"] = frozen_seconds
            found.append((clip._replace(frames=clip.frames[:0]), made.explanation, seconds_of))
    if when is not None:
        limit = f"{when.probability:g}"
        notes.append(f"{len(found)} of {len(every)} clips explained: those whose probability reaches {limit}")
    if not found:
        return VideoRun(None, every, notes)
    explained = ClipExplanations(
        explanation=joined([explanation for _, explanation, _ in found]),
        pixels=np.stack([clip.pixels for clip, _, _ in found]),
        starts=[clip.start for clip, _, _ in found],
        seconds=[seconds for _, _, seconds in found],
        frame_rate=rate / spec.stride,
        notes=notes,
        info=info or {},
        frozen_share=MotionShare(*(np.concatenate(shares) for shares in zip(*still, strict=True))) if still else None,
    )
    return VideoRun(explained, every, notes)


class _Work:
    """A runner at work on batches of clips, which may be short of its own: what it lacks is filled up."""

    def __init__(self, runner: Runner, spec: ClipSpec, when: Condition | None) -> None:
        self.runner, self.spec, self.when = runner, spec, when

    def look(self, clips: list[CutClip], target: int, *, explain: bool = True) -> list[tuple[Seen, Explained | None]]:
        """Return what each clip shows, and its explanation where the condition is met."""
        given = self.input(clips)
        since = time.perf_counter()
        explanation: Explanation | None = None
        if self.runner.split:
            seen = self._all_seen(clips, self.runner.forward(given))
            if explain and any(one.met for one in seen):
                explanation = self.runner.explain(target)
        else:
            explanation = self.runner(given, target)
            seen = self._all_seen(clips, explanation.logits)
        seconds = (time.perf_counter() - since) / len(clips)
        if explanation is None or not explain:
            return [(one, None) for one in seen]
        return [
            (one, Explained(explanation.clip(index), seconds) if one.met else None) for index, one in enumerate(seen)
        ]

    def seen(self, start: int, logits: Logits) -> Seen:
        """Return what a clip shows, by its logits [1,K]."""
        if self.when is None:
            return Seen(start, logits, 1.0, True)
        probability = self.when.measure(logits)
        return Seen(start, logits, probability, probability >= self.when.probability)

    def _all_seen(self, clips: list[CutClip], logits: Logits) -> list[Seen]:
        return [self.seen(clip.start, logits[index : index + 1]) for index, clip in enumerate(clips)]

    def frozen_shares(self, found: list[tuple[CutClip, Explained]]) -> list[MotionShare]:
        """Return what the selection keeps of clips frozen to one frame, for the class that each was explained for."""
        targets = [int(one.explanation.target[0]) for _, one in found]
        targets += targets[-1:] * (self.runner.clip_shape[0] - len(targets))
        explanation = self.runner(self.input([clip for clip, _ in found], frozen=True), targets)
        return [explanation.clip(index).motion_share() for index in range(len(found))]

    def input(self, clips: list[CutClip], *, frozen: bool = False) -> Clip:
        """Return clips as the runner takes them; ``frozen``: with their middle frame in place of all others."""
        given = [self._frames(clip) for clip in clips]
        given += given[-1:] * (self.runner.clip_shape[0] - len(given))
        pixels = np.stack([freeze(frames) if frozen else frames for frames in given])
        return self.spec.from_pixels(pixels) if self.runner.frames_shape is None else pixels

    def _frames(self, clip: CutClip) -> Frames:
        if self.runner.frames_shape is None:
            return clip.pixels
        frames = clip.frames[self.spec.indices(len(clip.frames))]
        if frames.shape != self.runner.frames_shape[1:]:
            wanted, got = ("×".join(map(str, shape[-2:-4:-1])) for shape in (self.runner.frames_shape, frames.shape))
            raise InputError(
                f"the artifact takes frames of {wanted} pixels, the video's are {got}: export it for that frame size, "
                "or with --input float"
            )
        return frames
