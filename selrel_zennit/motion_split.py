"""MotionSplit: how much of a network's answer is motion, how much is in a still picture, and where. NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class MotionSplit:
    """The margin of a class, taken apart: m(x) = m(blank) + what still pictures add + what motion adds.

    margin          float [B]        m(x): the class's logit minus the mean of the others'
    frozen_margins  float [B,K]      m of the references: clips in which nothing moves, made of the clip
    blank_margin    float [B]        m of a clip of the mean colour (zero in model units): what the network says unasked
    motion_part     float [B,T,H,W]  sums to ``motion``, margin − mean of the frozen margins; 0 where nothing moves
    static_part     float [B,T,H,W]  sums to ``still``, mean of the frozen margins − blank margin
    reference       what the references are: frames, middle, median or camera

    Raises ValueError, naming the field and the shape it got, for what does not fit together.
    """

    margin: FloatArray
    frozen_margins: FloatArray
    blank_margin: FloatArray
    motion_part: FloatArray
    static_part: FloatArray
    reference: str

    def __post_init__(self) -> None:
        shape = np.shape(self.motion_part)
        if len(shape) != 4:
            raise ValueError(f"motion_part must be [B,T,H,W], got {shape}")
        expected = {"margin": shape[:1], "blank_margin": shape[:1], "static_part": shape}
        for name, wanted in expected.items():
            if np.shape(getattr(self, name)) != wanted:
                raise ValueError(f"{name} must be {wanted}, got {np.shape(getattr(self, name))}")
        if self.frozen_margins.ndim != 2 or len(self.frozen_margins) != shape[0]:
            raise ValueError(f"frozen_margins must be [B,K], got {self.frozen_margins.shape}")
        for name in ("margin", "frozen_margins", "blank_margin", "motion_part", "static_part"):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name} holds NaN or infinity")

    def __len__(self) -> int:
        return len(self.margin)

    @property
    def motion(self) -> npt.NDArray[np.float64]:
        """What motion adds to the margin, [B]: below 0 where it speaks against the class."""
        return np.asarray(self.margin.astype(np.float64) - self.frozen_margins.astype(np.float64).mean(1))

    @property
    def still(self) -> npt.NDArray[np.float64]:
        """What still pictures add to the margin, [B]."""
        return np.asarray(self.frozen_margins.astype(np.float64).mean(1) - self.blank_margin)

    def bounds(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the least and the greatest of what motion adds, over the references, each [B]."""
        drops = self.margin[:, None].astype(np.float64) - self.frozen_margins
        return drops.min(1), drops.max(1)

    def clip(self, index: int) -> MotionSplit:
        """Return the split of one clip of the batch, as a batch of one."""
        return MotionSplit(
            **{name: getattr(self, name)[index : index + 1] for name in ARRAYS}, reference=self.reference
        )

    def sentence(self, index: int = 0) -> str:
        """Return the split of a clip in words: "16.8 of 18.0 (margin over the other classes) is motion"."""
        low, high = (float(end[index]) for end in self.bounds())
        motion, margin = float(self.motion[index]), float(self.margin[index])
        count = self.frozen_margins.shape[1]
        spread = f"; {shown(low)} to {shown(high)} over {count} reference frames" if count > 1 else ""
        return f"{shown(motion)} of {shown(margin)} (margin over the other classes) is motion{spread}"


ARRAYS = tuple(field.name for field in fields(MotionSplit) if field.name != "reference")


def joined_splits(splits: Sequence[MotionSplit]) -> MotionSplit:
    """Return one split of the clips of several."""
    return MotionSplit(
        **{name: np.concatenate([getattr(one, name) for one in splits]) for name in ARRAYS},
        reference=splits[0].reference,
    )


def shown(value: float) -> str:
    """Return a margin, or a part of one, for reading: one decimal, three below 1; exactly nothing is 0."""
    if value == 0:
        return "0"
    text = f"{value:.1f}" if abs(value) >= 1 else f"{value:.3f}"
    return text.replace("-", "−")
