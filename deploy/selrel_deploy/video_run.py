"""A runner on a video: its clips explained, all of them or those in which a class is seen. Without torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from selrel_zennit.clip import ClipSpec, Frames
from selrel_zennit.cutting import CutClip, cut, describe_source, freeze
from selrel_zennit.errors import InputError
from selrel_zennit.explanation import Explanation, MotionShare, joined
from selrel_zennit.outputs import ClipExplanations

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

    ``target`` −1 is the top class; with ``all_clips`` the one with the highest mean logit over all clips that are
    explained, for which the video is read twice. ``when`` says which clips to explain; of the others a split artifact
    costs the forward pass alone. ``info`` says what the explanation is. ``progress`` wraps the loops over clips.

    Raises InputError for a video that cannot be read, one whose frames have another size than an artifact that resizes
    by itself takes, and for a runner of more than one clip at once.
    """
    if runner.clip_shape != (1, *spec.shape):
        batch = runner.clip_shape[0]
        remedy = "export it with --batch 1" if batch != 1 else "its clip_spec is that of another network"
        raise InputError(f"the artifact takes clips {runner.clip_shape}, a video gives {(1, *spec.shape)}: {remedy}")
    notes, rate = describe_source(source, spec)
    if when is not None and not runner.split:
        notes.append("the artifact is not split: every clip cost a whole explanation; export it with --split")
    work = _Work(runner, spec, when)

    def clips() -> Iterator[CutClip]:
        return cut(source, spec, start, all_clips, notes)

    first_explained: dict[int, tuple[Explanation, float]] = {}
    if all_clips and target == TOP:
        total = np.zeros(runner.num_classes)
        for clip in progress(clips()):
            seen, explanation, seconds = work.look(clip, TOP, explain=not runner.split)
            total += seen.logits[0] if seen.met else 0
            if explanation is not None:
                first_explained[clip.start] = explanation, seconds
        target = int(total.argmax())
    every: list[Seen] = []
    found: list[tuple[CutClip, Explanation, dict[str, Any]]] = []
    still: list[MotionShare] = []
    for clip in progress(clips()):
        known = first_explained.pop(clip.start, None)
        if known is not None and known[0].target[0] == target:
            (explanation, spent), seen = known, work.seen(clip.start, known[0].logits)
        else:
            seen, explanation, spent = work.look(clip, target)
        every.append(seen)
        if explanation is None:
            continue
        # The selection runs inside the artifact, where nobody can time it apart.
        seconds_of: dict[str, Any] = {"read": clip.seconds, "forward_backward": spent, "select": None}
        if frozen:
            since = time.perf_counter()
            still.append(runner(work.input(clip, frozen=True), explanation.target).motion_share())
            seconds_of["frozen"] = time.perf_counter() - since
        found.append((clip._replace(frames=clip.frames[:0]), explanation, seconds_of))
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
    def __init__(self, runner: Runner, spec: ClipSpec, when: Condition | None) -> None:
        self.runner, self.spec, self.when = runner, spec, when

    def look(self, clip: CutClip, target: int, *, explain: bool = True) -> tuple[Seen, Explanation | None, float]:
        """Return what a clip shows, its explanation where the condition is met, and the seconds of the runner."""
        given = self.input(clip)
        since = time.perf_counter()
        explanation: Explanation | None = None
        if self.runner.split:
            seen = self.seen(clip.start, self.runner.forward(given))
            if seen.met and explain:
                explanation = self.runner.explain(target)
        else:
            explanation = self.runner(given, target)
            seen = self.seen(clip.start, explanation.logits)
            explanation = explanation if seen.met and explain else None
        return seen, explanation, time.perf_counter() - since

    def seen(self, start: int, logits: Logits) -> Seen:
        """Return what a clip shows."""
        if self.when is None:
            return Seen(start, logits, 1.0, True)
        probability = self.when.measure(logits)
        return Seen(start, logits, probability, probability >= self.when.probability)

    def input(self, clip: CutClip, *, frozen: bool = False) -> Clip:
        """Return a clip as the runner takes it; ``frozen``: with its middle frame in place of all others."""
        if self.runner.frames_shape is None:
            return self.spec.from_pixels((freeze(clip.pixels) if frozen else clip.pixels)[None])
        frames = clip.frames[self.spec.indices(len(clip.frames))]
        if frames.shape != self.runner.frames_shape[1:]:
            wanted, got = ("×".join(map(str, shape[-2:-4:-1])) for shape in (self.runner.frames_shape, frames.shape))
            raise InputError(
                f"the artifact takes frames of {wanted} pixels, the video's are {got}: export it for that frame size, "
                "or with --input float"
            )
        return (freeze(frames) if frozen else frames)[None]
