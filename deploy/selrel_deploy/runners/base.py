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

Clip = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
Target = int | Sequence[int] | npt.NDArray[np.integer[Any]] | None
Outputs = Sequence[npt.NDArray[Any]]


class OutputError(InputError):
    """What a runtime computed is no explanation: values that are not finite, a class that does not exist."""


class Runner(ABC):
    """An explanation ready to run: clip float32 [B,3,T,H,W] in model units → Explanation.

    A runner of an artifact with frames as input takes those instead: uint8 [B,T,H,W,3] RGB of ``frames_shape``.
    ``name`` is the runtime; ``device``, ``provider`` and ``precision`` say what really runs, as the runtime reports
    it. A context manager: leaving the block frees what the runtime holds, and the runner refuses further clips.

    Where the artifact is split (``runner.split``), ``forward(clip)`` and ``explain(target)`` do one half each.
    """

    name: str
    split = False

    def __init__(
        self,
        clip_shape: tuple[int, ...],
        num_classes: int,
        *,
        device: str,
        provider: str,
        precision: str,
        frames_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.clip_shape, self.num_classes, self.frames_shape = clip_shape, num_classes, frames_shape
        self.device, self.provider, self.precision = device, provider, precision
        self.closed = False
        self._logits: npt.NDArray[np.float32] | None = None

    @classmethod
    @abstractmethod
    def open(cls, source: Any, **options: Any) -> Runner:
        """Return a runner for an artifact's path or a graph; see ``open_runner``."""

    @abstractmethod
    def run(self, clip: Clip, target: npt.NDArray[np.int64]) -> Outputs:
        """Return the outputs for a checked clip and checked targets [B]; not called where the artifact is split."""

    def run_forward(self, clip: Clip) -> npt.NDArray[Any]:
        """Return the logits of a checked clip, and keep what ``run_explain`` needs of it."""
        raise NotImplementedError

    def run_explain(self, target: npt.NDArray[np.int64]) -> Outputs:
        """Return the outputs after the logits, of the clip that ``run_forward`` had last."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what the runtime holds."""
        self.closed = True
        self._logits = None

    def __call__(self, clip: Clip, target: Target = None) -> Explanation:
        """Explain a clip: ``target`` is None or −1 (the top class), a class, or one of these per clip.

        Raises InputError for a clip of another shape or type or with NaN or infinity, a target outside −1…K−1, and
        after ``close``; OutputError, an InputError, where what comes out is no explanation.
        """
        self._check_open()
        self._logits = None
        return self._explanation(self._outputs(self._checked_clip(clip), self._checked_target(target)))

    def forward(self, clip: Clip) -> npt.NDArray[np.float32]:
        """Return the logits [B,K] of a clip at the cost of a forward pass, and keep its activations for ``explain``.

        Raises InputError as ``__call__`` does, and where the artifact is not split.
        """
        self._check_split()
        self._logits = None
        self._logits = self.run_forward(self._checked_clip(clip))
        return self._logits.copy()

    def explain(self, target: Target = None) -> Explanation:
        """Explain the clip that this runner had last, as often as there are targets to ask for.

        Raises InputError as ``__call__`` does, where the artifact is not split, and before any ``forward``.
        """
        self._check_split()
        if self._logits is None:
            raise InputError("there is no clip to explain: call forward(clip) first")
        return self._explanation([self._logits.copy(), *self.run_explain(self._checked_target(target))])

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> Literal[False]:
        self.close()
        return False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.provider} on {self.device}, {self.precision})"

    def _check_open(self) -> None:
        if self.closed:
            raise InputError(f"the {self.name} runner is closed: open another with open_runner")

    def _check_split(self) -> None:
        self._check_open()
        if not self.split:
            raise InputError(
                "forward and explain need an artifact of two parts: export it with --split (export(…, split=True))"
            )

    def _outputs(self, clip: Clip, target: npt.NDArray[np.int64]) -> Outputs:
        if not self.split:
            return self.run(clip, target)
        self._logits = self.run_forward(clip)
        return [self._logits.copy(), *self.run_explain(target)]

    def _explanation(self, outputs: Outputs) -> Explanation:
        try:
            return Explanation(*outputs)
        except ValueError as error:
            raise OutputError(
                f"{self.name} ({self.provider}, {self.precision}) computed no explanation: {error}; "
                "choose another precision or runner"
            ) from None

    def _checked_clip(self, clip: Any) -> Clip:
        dtype, shape = (np.float32, self.clip_shape) if self.frames_shape is None else (np.uint8, self.frames_shape)
        if not isinstance(clip, np.ndarray) or clip.dtype != dtype or clip.shape != shape:
            got = f"{clip.dtype} {clip.shape}" if isinstance(clip, np.ndarray) else type(clip).__name__
            what, remedy = (
                ("clip", "use ClipSpec.array(frames)")
                if self.frames_shape is None
                else ("frames", "this artifact resizes by itself and takes frames of one size, as they are")
            )
            raise InputError(f"the {what} must be a {dtype.__name__} array {shape}, got {got}: {remedy}")
        if self.frames_shape is None and not np.isfinite(clip).all():
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
