"""Runner: what every runtime offers, and the checks that all of them share. NumPy alone."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from selrel_zennit.errors import InputError
from selrel_zennit.explanation import Explanation

Clip = npt.NDArray[np.float32]
Target = int | Sequence[int] | npt.NDArray[np.integer[Any]] | None


class Runner(ABC):
    """An explanation ready to run: clip float32 [B,3,T,H,W] in model units → Explanation.

    ``name`` is the runtime; ``device``, ``provider`` and ``precision`` say what really runs, as the runtime reports
    it. A context manager: leaving the block frees what the runtime holds, and the runner refuses further clips.
    """

    name: str

    def __init__(
        self, clip_shape: tuple[int, ...], num_classes: int, *, device: str, provider: str, precision: str
    ) -> None:
        self.clip_shape, self.num_classes = clip_shape, num_classes
        self.device, self.provider, self.precision = device, provider, precision
        self.closed = False

    @classmethod
    @abstractmethod
    def open(cls, source: Any, **options: Any) -> Runner:
        """Return a runner for an artifact's path or a graph; see ``open_runner``."""

    @abstractmethod
    def run(self, clip: Clip, target: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[Any]]:
        """Return the artifact's outputs for a checked clip and checked targets [B]."""

    def close(self) -> None:
        """Free what the runtime holds."""
        self.closed = True

    def __call__(self, clip: Clip, target: Target = None) -> Explanation:
        """Explain a clip: ``target`` is None or −1 (the top class), a class, or one of these per clip.

        Raises InputError for a clip of another shape or type or with NaN or infinity, a target outside −1…K−1, and
        after ``close``.
        """
        if self.closed:
            raise InputError(f"the {self.name} runner is closed: open another with open_runner")
        logits, explained, relevance, motion, mask = self.run(self._checked_clip(clip), self._checked_target(target))
        return Explanation(logits, explained, relevance, motion, mask)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> Literal[False]:
        self.close()
        return False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.provider} on {self.device}, {self.precision})"

    def _checked_clip(self, clip: Any) -> Clip:
        if not isinstance(clip, np.ndarray) or clip.dtype != np.float32 or clip.shape != self.clip_shape:
            got = f"{clip.dtype} {clip.shape}" if isinstance(clip, np.ndarray) else type(clip).__name__
            raise InputError(
                f"the clip must be a float32 array {self.clip_shape}, got {got}: use ClipSpec.array(frames)"
            )
        if not np.isfinite(clip).all():
            raise InputError("the clip holds NaN or infinity: look at what scaled the frames")
        return np.ascontiguousarray(clip)

    def _checked_target(self, target: Target) -> npt.NDArray[np.int64]:
        given = np.asarray(-1 if target is None else target)
        batch = self.clip_shape[0]
        if given.dtype.kind not in "iu" or given.ndim > 1 or given.size not in (1, batch):
            raise InputError(f"target must be a whole number, or {batch} of them, got {target!r}")
        if given.min() < -1 or given.max() >= self.num_classes:
            raise InputError(f"target must lie in -1…{self.num_classes - 1} (-1: top class), got {given.tolist()}")
        return np.ascontiguousarray(np.broadcast_to(given.reshape(-1), (batch,)), dtype=np.int64)


def processor() -> str:
    """Return the name of the processor, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
