"""What explains a window: an artifact by its runner. Without torch; ``torch_engines`` has the methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from selrel_zennit.clips.spec import ClipSpec, Frames
from selrel_zennit.errors import InputError
from selrel_zennit.explanation import Explanation
from selrel_zennit.loop import Condition

from ..artifact.format import Artifact
from ..runners.base import Runner

Logits = npt.NDArray[np.floating[Any]]


class Looked(NamedTuple):
    """What an engine made of a window: logits [1,K], and the explanation, None where the condition is not met."""

    logits: Logits
    explanation: Explanation | None


class Engine(ABC):
    """A way to explain windows uint8 [T,H,W,3].

    ``motion`` says whether its relevance is the part of the margin that is motion; ``settings`` and ``info`` are what a
    summary says of it.
    """

    name: str
    spec: ClipSpec
    class_names: list[str] | None
    num_classes: int
    motion: bool
    settings: dict[str, Any]
    info: dict[str, Any]

    def prepare(self, frame: Frames) -> Frames:
        """Return a frame as the network sees it. Done once for each frame, however many windows it is in."""
        return np.asarray(self.spec.pixels(frame[None])[0])

    @abstractmethod
    def look(self, pixels: Frames, target: int, when: Condition | None) -> Looked:
        """Return what a window shows, for the class ``target`` (−1: on top). Raises InputError as runners do."""


class ArtifactEngine(Engine):
    """An artifact of `selrel export`, in the runner that it was opened in."""

    def __init__(self, runner: Runner, settings: dict[str, Any]) -> None:
        artifact: Artifact = runner.artifact  # type: ignore[attr-defined]
        if artifact.clip_shape[0] != 1:
            raise InputError(f"{artifact.path} explains {artifact.clip_shape[0]} clips at once: export with --batch 1")
        if artifact.info.get("clip_spec") is None:
            raise InputError(f"{artifact.path} does not say how frames become clips (clip_spec): export it anew")
        self.runner, self.settings, self.info = runner, settings, artifact.info
        self.spec = ClipSpec.from_dict(artifact.info["clip_spec"])
        self.class_names, self.num_classes = artifact.info.get("class_names"), artifact.num_classes
        method = str(settings["method"])
        self.motion = method == "motion_lrp" and (artifact.info.get("options") or {}).get("output") == "margin"
        self.name = f"{method}, {runner.precision}"

    def prepare(self, frame: Frames) -> Frames:
        """Return a frame as the artifact takes it; see ``Engine.prepare``."""
        shape = self.runner.frames_shape
        if shape is None:
            return super().prepare(frame)
        if frame.shape != shape[2:]:
            wanted, got = (f"{size[1]}×{size[0]}" for size in (shape[2:], frame.shape))
            raise InputError(f"the artifact takes frames of {wanted} pixels, these are {got}: export it for that size")
        return frame

    def look(self, pixels: Frames, target: int, when: Condition | None) -> Looked:
        """Return what a window shows; see ``Engine.look``."""
        clip = self.spec.from_pixels(pixels[None]) if self.runner.frames_shape is None else pixels[None]
        if self.runner.split:
            logits = self.runner.forward(clip)
            met = when is None or when.measure(logits) >= when.probability
            return Looked(logits, self.runner.explain(target) if met else None)
        explanation = self.runner(clip, target)
        met = when is None or when.measure(explanation.logits) >= when.probability
        return Looked(explanation.logits, explanation if met else None)
