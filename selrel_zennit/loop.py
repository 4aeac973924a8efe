"""explain_clips(): the one loop over a video, for attributors and runners alike. Clip by clip, without torch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .clips.cutting import CutClip, cut, describe_source, freeze
from .clips.spec import ClipSpec, Frames
from .errors import InputError
from .explanation import ClipExplanations, ExplainedClip, Explanation, MotionShare
from .progress import Progress, watched

Logits = npt.NDArray[np.floating[Any]]

TOP = -1
"""As a target: the class with the highest logit."""


class Explained(NamedTuple):
    """What an explainer made of one clip: its explanation, a batch of one, and the seconds of each stage."""

    explanation: Explanation
    seconds: dict[str, Any]


class Explainer(Protocol):
    """What explains clips: an attributor with its selection (``ModelExplainer``), or a runner (``RunnerExplainer``).

    spec           what clips of a video it takes
    batch          how many clips it is given at once, at most
    forward_alone  whether ``logits`` costs less than ``explain``
    The loop enters it, asks, and leaves it; it may be entered again.
    """

    spec: ClipSpec
    batch: int
    forward_alone: bool

    @property
    def info(self) -> dict[str, Any]:
        """What it is; complete once it has explained."""
        ...

    @property
    def notes(self) -> list[str]:
        """What befell its work, for humans; complete once it has explained."""
        ...

    def __enter__(self) -> Any: ...

    def __exit__(self, *raised: Any) -> Any: ...

    def logits(self, clips: Sequence[CutClip]) -> Logits:
        """Return what the network says of clips, [B,K]."""
        ...

    def explain(self, clips: Sequence[CutClip], target: Any) -> list[Explained]:
        """Explain clips for one class. The logits of the same clips may have been asked for just before."""
        ...

    def shares(self, clips: Sequence[CutClip], targets: list[int]) -> list[MotionShare]:
        """Return what the selection keeps of each clip for a class of its own, each [1], and nothing else."""
        ...


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


class ClipStream(Iterator[ExplainedClip]):
    """The explained clips of a video, one after the other: what ``explain_clips`` returns.

    frame_rate  clip frames per second of video
    seen        where there is a condition: every clip looked at so far, those too that did not meet it
    notes       what was done to the input, for humans: loop padding, dropped alpha, …; complete after the last clip
    info        what the explainer is; complete after the last clip
    """

    def __init__(
        self,
        clips: Iterator[ExplainedClip],
        frame_rate: float,
        seen: list[Seen],
        notes: list[str],
        info: dict[str, Any],
    ) -> None:
        self._clips, self.frame_rate, self.seen, self.notes, self.info = clips, frame_rate, seen, notes, info

    def __next__(self) -> ExplainedClip:
        return next(self._clips)

    def collected(self) -> ClipExplanations:
        """Return all clips as one batch, in memory. Raises InputError where no clip met the condition."""
        found = list(self)
        if not found:
            raise InputError("no clip met the condition: nothing is explained")
        return ClipExplanations.of(found, self.frame_rate, self.notes, self.info)


def explain_clips(
    source: str | Path | Frames | Iterable[CutClip],
    explainer: Explainer,
    target: Any = "top1",
    *,
    start: int = 0,
    all_clips: bool = False,
    frozen: bool = True,
    when: Condition | None = None,
    progress: Progress = False,
) -> ClipStream:
    """Explain one clip of a video, or every clip, and give each as it comes: memory does not grow with the video.

    ``source`` is a path, frames uint8 [N,H,W,3], or clips that are cut already, which are all explained. With
    ``all_clips`` the video is cut into successive clips from frame ``start`` on, an incomplete last one left out, and
    "top1" is the class with the highest mean logit over all that are explained, for which the video is read twice.
    ``target`` is "top1" (or −1), or what the explainer takes. With ``frozen`` each clip is explained a second time
    with its middle frame in place of all others, for the same class: what the selection keeps of that is no motion.
    ``when`` says which clips to explain; an explainer whose forward pass stands apart pays for the others no more than
    that. ``progress`` shows how far the loop is.

    Raises InputError, at the call or on the way, for a video that cannot be read or has fewer than 2 frames from
    ``start`` on, and as the explainer does.
    """
    notes, rate = describe_source(source, explainer.spec) if isinstance(source, str | Path | np.ndarray) else ([], 25.0)
    if when is not None and not explainer.forward_alone:
        notes.append("the artifact is not split: every clip cost a whole explanation; export it with --split")
    if not all_clips and explainer.batch > 1:
        notes.append(f"the artifact explains {explainer.batch} clips at once: one alone costs as much as all")
    # Both write into these; the work does not know the stream, so that to drop the stream is to leave the explainer.
    seen: list[Seen] = []
    info: dict[str, Any] = {}
    work = _Work(source, explainer, start, all_clips, frozen, when, progress, seen, notes, info)
    return ClipStream(work.run(target), rate / explainer.spec.stride, seen, notes, info)


@dataclass
class _Work:
    source: str | Path | Frames | Iterable[CutClip]
    explainer: Explainer
    start: int
    all_clips: bool
    frozen: bool
    when: Condition | None
    progress: Progress
    looked_at: list[Seen]
    notes: list[str]
    info: dict[str, Any]

    def run(self, target: Any) -> Iterator[ExplainedClip]:
        explained = 0
        with self.explainer:
            if self.all_clips and target in ("top1", TOP):
                target = self.top()
            for clips in self.batches(self.notes):
                since = time.perf_counter()
                logits: Logits | None = None
                if self.when is not None and self.explainer.forward_alone:
                    logits = self.explainer.logits(clips)
                looked = (time.perf_counter() - since) / len(clips)
                made: list[Explained] = []
                if logits is None or any(one.met for one in self.seen(clips, logits)):
                    made = self.explainer.explain(clips, target)
                    logits = np.concatenate([one.explanation.logits for one in made])
                seen = self.seen(clips, logits)
                self.looked_at += seen if self.when is not None else []
                met = [place for place, one in enumerate(seen) if one.met]
                explained += len(met)
                shares, seconds = self.shares([clips[place] for place in met], [made[place] for place in met])
                for place, share in zip(met, shares, strict=True):
                    spent: dict[str, Any] = {"read": clips[place].seconds, **made[place].seconds, **seconds}
                    spent["forward_backward"] += looked
                    explanation = replace(made[place].explanation, frames=clips[place].pixels[None])
                    yield ExplainedClip(clips[place].start, explanation, spent, share)
            self.notes += self.explainer.notes
            if self.when is not None:
                limit = f"{self.when.probability:g}"
                total = len(self.looked_at)
                self.notes.append(f"{explained} of {total} clips explained: those whose probability reaches {limit}")
            self.info |= self.explainer.info

    def top(self) -> int:
        """Return the class with the highest mean logit over all clips that will be explained."""
        total: npt.NDArray[np.float64] | None = None
        for clips in self.batches([]):
            logits = self.explainer.logits(clips)
            met = np.array([one.met for one in self.seen(clips, logits)])
            added = logits[met].astype(np.float64).sum(0)
            total = added if total is None else total + added
        assert total is not None
        return int(total.argmax())

    def batches(self, notes: list[str]) -> Iterator[list[CutClip]]:
        if isinstance(self.source, str | Path | np.ndarray):
            clips: Iterable[CutClip] = cut(self.source, self.explainer.spec, self.start, self.all_clips, notes)
        else:
            clips = self.source
        waiting = iter(watched(clips, self.progress))
        while batch := list(islice(waiting, self.explainer.batch)):
            yield batch

    def seen(self, clips: list[CutClip], logits: Logits) -> list[Seen]:
        """Return what each clip shows, by its logits."""
        rows = [logits[place : place + 1] for place in range(len(clips))]
        if self.when is None:
            return [Seen(clip.start, row, 1.0, True) for clip, row in zip(clips, rows, strict=True)]
        probabilities = [self.when.measure(row) for row in rows]
        return [
            Seen(clip.start, row, probability, probability >= self.when.probability)
            for clip, row, probability in zip(clips, rows, probabilities, strict=True)
        ]

    def shares(
        self, clips: list[CutClip], made: list[Explained]
    ) -> tuple[Sequence[MotionShare | None], dict[str, float]]:
        """Return the motion shares of clips frozen to one frame, and the seconds that each took."""
        if not self.frozen or not clips:
            return [None] * len(clips), {}
        since = time.perf_counter()
        spec = self.explainer.spec
        still = [
            clip._replace(frames=freeze(clip.frames[spec.indices(len(clip.frames))]), pixels=freeze(clip.pixels))
            for clip in clips
        ]
        shares = self.explainer.shares(still, [int(one.explanation.target[0]) for one in made])
        return shares, {"frozen": (time.perf_counter() - since) / len(clips)}
