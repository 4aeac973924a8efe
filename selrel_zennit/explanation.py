"""Explanation: what comes out of explaining a batch of clips, checked on construction. NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .motion_split import MotionSplit, joined_splits

FloatArray = npt.NDArray[np.float32]

_FIELDS = ("logits", "target", "relevance", "motion_relevance", "mask")


class MotionShare(NamedTuple):
    """How much of an explanation the selection kept, each [B] in 0…1 (NaN where a map is zero everywhere)."""

    area: npt.NDArray[np.float64]
    mass: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Explanation:
    """Logits, relevance and motion relevance of a batch of clips.

    logits            float [B,K]      what the network said
    target            int   [B]        the class explained
    relevance         float [B,T,H,W]  channels summed
    motion_relevance  float [B,T,H,W]  ``where(mask, relevance, 0)``
    mask              bool  [B,T,H,W]  what the selection kept
    unseen            strings          operations of the network that no rule of the method saw (``strict=False``)
    split             MotionSplit      the margin taken apart: what of it is motion; None where that was not asked for

    Raises ValueError, naming the field and the shape it got, for anything that does not fit together, and for values
    that are not finite.
    """

    logits: FloatArray
    target: npt.NDArray[np.int64]
    relevance: FloatArray
    motion_relevance: FloatArray
    mask: npt.NDArray[np.bool_]
    unseen: tuple[str, ...] = field(default=(), kw_only=True)
    split: MotionSplit | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        shape = np.shape(self.relevance)
        batch = shape[:1]
        expected = {
            "logits": (2, "[B,K]", np.floating),
            "target": (1, "[B]", np.integer),
            "relevance": (4, "[B,T,H,W]", np.floating),
            "motion_relevance": (4, "[B,T,H,W]", np.floating),
            "mask": (4, "[B,T,H,W]", np.bool_),
        }
        for name, (ndim, letters, kind) in expected.items():
            value = getattr(self, name)
            if not isinstance(value, np.ndarray):
                raise ValueError(f"{name} must be a NumPy array, got {type(value).__name__}")
            if value.ndim != ndim:
                raise ValueError(f"{name} must be {letters}, got {value.shape}")
            if not np.issubdtype(value.dtype, kind):
                raise ValueError(f"{name} must be of kind {kind.__name__}, got {value.dtype}")
            if value.shape[:1] != batch:
                raise ValueError(f"{name} has a batch of {value.shape[0]}, relevance of {batch[0]}")
            if ndim == 4 and value.shape != shape:
                raise ValueError(f"{name} must have relevance's shape {shape}, got {value.shape}")
            if kind is np.floating and not np.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or infinity")
        classes = self.logits.shape[1]
        if self.target.size and not (self.target.min() >= 0 and self.target.max() < classes):
            raise ValueError(f"target must lie in 0…{classes - 1}, got {self.target.tolist()}")
        if not np.array_equal(self.motion_relevance, np.where(self.mask, self.relevance, 0)):
            raise ValueError("motion_relevance must be relevance where mask is set and zero elsewhere")
        if self.split is not None and self.split.motion_part.shape != shape:
            raise ValueError(f"the split must have relevance's shape {shape}, got {self.split.motion_part.shape}")

    def __len__(self) -> int:
        return int(self.relevance.shape[0])

    def clip(self, index: int) -> Explanation:
        """Return the explanation of one clip of the batch, as a batch of one."""
        arrays = {name: getattr(self, name)[index : index + 1] for name in _FIELDS}
        split = None if self.split is None else self.split.clip(index)
        return Explanation(**arrays, unseen=self.unseen, split=split)

    @property
    def static_relevance(self) -> FloatArray:
        """What the selection dropped, [B,T,H,W]."""
        return np.where(self.mask, np.float32(0), self.relevance)

    def probabilities(self) -> npt.NDArray[np.float64]:
        """Softmax of the logits, float64 [B,K]."""
        shifted = self.logits.astype(np.float64) - self.logits.max(axis=1, keepdims=True)
        exponentials = np.exp(shifted)
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))

    def motion_share(self) -> MotionShare:
        """Return the share of relevance kept: area = |R≠0 ∧ mask| ÷ |R≠0|, mass = Σ|R|·mask ÷ Σ|R|, each [B]."""
        axes = (1, 2, 3)
        nonzero, size = self.relevance != 0, np.abs(self.relevance.astype(np.float64))
        with np.errstate(invalid="ignore"):
            area = (nonzero & self.mask).sum(axes) / nonzero.sum(axes)
            mass = (size * self.mask).sum(axes) / size.sum(axes)
        return MotionShare(np.asarray(area), np.asarray(mass))


def joined(explanations: Sequence[Explanation]) -> Explanation:
    """Return one explanation of the clips of several."""
    unseen = tuple(dict.fromkeys(text for one in explanations for text in one.unseen))
    arrays = {name: np.concatenate([getattr(one, name) for one in explanations]) for name in _FIELDS}
    splits = [one.split for one in explanations]
    split = joined_splits([one for one in splits if one is not None]) if all(splits) else None
    return Explanation(**arrays, unseen=unseen, split=split)
