"""RunnerExplainer: a runner as the loop over a video takes it. Without torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.class_names import class_index
from selrel_zennit.clips.cutting import CutClip
from selrel_zennit.clips.spec import ClipSpec, Frames
from selrel_zennit.errors import InputError
from selrel_zennit.explanation import MotionShare
from selrel_zennit.loop import TOP, Explained
from selrel_zennit.spill import StoredExplanations

from .base import Clip, Runner


class RunnerExplainer:
    """A runner, as ``explain_clips`` takes it: an Explainer. It stays open.

    ``spec`` is how its clips are cut, ``info`` what the explanation is, as an artifact says it. A runner of several
    clips at once gets successive ones; the last batch is filled up with its last clip. Targets are indices, and names
    where ``info["class_names"]`` has some.

    Raises InputError for a spec that does not fit the runner, and, on the way, for frames of another size than an
    artifact that resizes by itself takes.
    """

    def __init__(self, runner: Runner, spec: ClipSpec, info: dict[str, Any] | None = None) -> None:
        if runner.clip_shape[1:] != spec.shape:
            raise InputError(
                f"the artifact takes clips {runner.clip_shape[1:]}, a video gives {spec.shape}: "
                "its clip_spec is that of another network"
            )
        self.runner, self.spec, self.info = runner, spec, info or {}
        self.batch, self.forward_alone = runner.clip_shape[0], runner.split
        self.notes: list[str] = []
        # The clips whose activations a split artifact holds.
        self._last: list[CutClip] = []
        self._leave()

    def __enter__(self) -> RunnerExplainer:
        self._leave()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._leave()

    def logits(self, clips: Sequence[CutClip]) -> npt.NDArray[np.float32]:
        """Return the logits of clips, [B,K]. Where the forward pass does not stand apart, they are explained with it.

        Such explanations wait on disk: those of the class that is asked for later are not made again.
        """
        if self.runner.split:
            logits = self.runner.forward(self.input(clips))[: len(clips)]
            self._last = list(clips)
            return logits
        made = self._explained(clips, TOP)
        for clip, one in zip(clips, made, strict=True):
            if clip.start not in self._places:
                self._places[clip.start] = len(self._stored)
                self._stored.append(one.explanation)
                self._seconds.append(one.seconds)
        return np.concatenate([one.explanation.logits for one in made])

    def explain(self, clips: Sequence[CutClip], target: int | str) -> list[Explained]:
        """Explain clips for one class."""
        if isinstance(target, str):
            target = class_index(target, self.runner.num_classes, self.info.get("class_names"))
        places = [self._places.get(clip.start) for clip in clips]
        known = [None if place is None else int(self._stored.arrays.array("target", place)[0]) for place in places]
        if all(one == target for one in known):
            return [Explained(self._stored[place], self._seconds[place]) for place in places if place is not None]
        return self._explained(clips, target)

    def shares(self, clips: Sequence[CutClip], targets: list[int]) -> list[MotionShare]:
        """Return what the selection keeps of clips, each for a class of its own."""
        targets = targets + targets[-1:] * (self.batch - len(targets))
        self._last = []
        explanation = self.runner(self.input(clips), targets)
        return [explanation.clip(index).motion_share() for index in range(len(clips))]

    def input(self, clips: Sequence[CutClip]) -> Clip:
        """Return clips as the runner takes them; what they lack to a batch is filled up with the last one."""
        given = [self._frames(clip) for clip in clips]
        given += given[-1:] * (self.batch - len(given))
        pixels = np.stack(given)
        return self.spec.from_pixels(pixels) if self.runner.frames_shape is None else pixels

    def _leave(self) -> None:
        self._stored, self._places, self._seconds = StoredExplanations(), dict[int, int](), list[dict[str, Any]]()
        self._last = []

    def _explained(self, clips: Sequence[CutClip], target: int) -> list[Explained]:
        since = time.perf_counter()
        if len(self._last) == len(clips) and all(one is other for one, other in zip(self._last, clips, strict=True)):
            explanation = self.runner.explain(target)
        else:
            explanation = self.runner(self.input(clips), target)
        # The selection runs inside the artifact, where nobody can time it apart.
        seconds = {"forward_backward": (time.perf_counter() - since) / len(clips), "select": None}
        self._last = []
        return [Explained(explanation.clip(index), dict(seconds)) for index in range(len(clips))]

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
