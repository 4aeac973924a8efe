"""versus(): two classes of one clip side by side, and how far their maps differ. NumPy alone, until it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .explanation import Explanation, FloatArray

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .attribution.foreign import Method
    from .attribution.target import Target
    from .selection.selections import Selection

RUNNER_UP = "runner-up"


@dataclass(frozen=True, eq=False)
class Versus:
    """Explanations of the same clips for two classes: ``first`` for A, ``second`` for B.

    To be compared, each map is divided by its Σ|R|, clip by clip: A and B then weigh the same, and what is left is
    *where* each class finds its relevance. For a conserving method with positive maps (dtd) this changes nothing but
    the scale. A map of zeros stays zero.

    Raises ValueError for explanations of different shapes, InputError where A and B are the same class.
    """

    first: Explanation
    second: Explanation

    def __post_init__(self) -> None:
        shapes = self.first.relevance.shape, self.second.relevance.shape
        if shapes[0] != shapes[1]:
            raise ValueError(f"first and second must be maps of the same clips, got {shapes[0]} and {shapes[1]}")
        same = np.flatnonzero(self.first.target == self.second.target)
        if same.size:
            raise InputError(
                f"clip {same[0]}: class {self.first.target[same[0]]} stands on both sides; choose another to compare"
            )

    def __repr__(self) -> str:
        return f"Versus({self.first!r} against {self.second!r})"

    @property
    def difference(self) -> FloatArray:
        """Where A has more relevance than B (positive) and less (negative): A/Σ|A| − B/Σ|B|, float32 [B,T,H,W]."""
        return self._difference("relevance")

    @property
    def motion_difference(self) -> FloatArray:
        """The same of the motion relevance, still divided by Σ|R| of the whole maps, float32 [B,T,H,W]."""
        return self._difference("motion_relevance")

    @property
    def distance(self) -> npt.NDArray[np.float64]:
        """Σ|difference| ÷ 2, [B]: from 0, the same map, to 1, nothing in common; NaN where a map is zero everywhere.

        For maps without negative values: the share of the relevance that lies elsewhere (total variation).
        """
        distance = np.abs(self.difference).sum((1, 2, 3), dtype=np.float64) / 2
        empty = [(one.relevance == 0).all((1, 2, 3)) for one in (self.first, self.second)]
        return np.asarray(np.where(empty[0] | empty[1], np.nan, distance))

    def unit(self, one: Explanation, field: str) -> FloatArray:
        """Return ``relevance`` or ``motion_relevance`` of one side divided by Σ|R| of its relevance, [B,T,H,W]."""
        total = np.abs(one.relevance).sum((1, 2, 3), keepdims=True, dtype=np.float64)
        return np.asarray(getattr(one, field) / np.where(total > 0, total, 1), np.float32)

    def _difference(self, field: str) -> FloatArray:
        return self.unit(self.first, field) - self.unit(self.second, field)


def versus(
    model: nn.Module,
    clip: torch.Tensor,
    method: Method = "dtd",
    target: Target = "top1",
    other: Target = RUNNER_UP,
    *,
    selection: Selection | None = None,
    **options: Any,
) -> Versus:
    """Explain a batch of clips for two classes, ``target`` and ``other``: the same attributor, called twice.

    ``other`` may be "runner-up": in each clip the class with the highest logit, the target left out. The other
    arguments and the errors are those of ``explain``. A method that samples draws the same for both classes, as far as
    its own seed says so.
    """
    from .attribution.foreign import as_attributor
    from .pipeline import explain

    # One attributor, so that what is built once (composites, boxes) is the same for both classes.
    method = as_attributor(method, model, options, clip)
    first = explain(model, clip, method, target, selection=selection)
    if isinstance(other, str) and other == RUNNER_UP:
        other = runner_up(first.logits, first.target).tolist()
    return Versus(first, explain(model, clip, method, other, selection=selection))


def runner_up(logits: npt.NDArray[np.floating[Any]], target: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Return the class with the highest logit of [B,K], ``target`` [B] left out: [B]. InputError for a single class."""
    if logits.shape[1] < 2:
        raise InputError("a network of one class has no runner-up: there is nothing to compare with")
    others = np.where(np.arange(logits.shape[1]) == target[:, None], -np.inf, logits)
    return np.asarray(others.argmax(1), np.int64)


def cosine(first: npt.NDArray[np.floating[Any]], second: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return the cosine of two maps [B,…], per clip; NaN where one is zero everywhere."""
    a, b = (one.reshape(len(one), -1).astype(np.float64) for one in (first, second))
    with np.errstate(invalid="ignore"):
        # Divided one after the other: the product of the norms of two faint maps may be zero.
        return np.asarray(np.einsum("bn,bn->b", a, b) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def mask_iou(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return |A∩B| ÷ |A∪B| of two masks [B,T,H,W], per clip; NaN where both are empty."""
    with np.errstate(invalid="ignore"):
        return np.asarray((first & second).sum((1, 2, 3)) / (first | second).sum((1, 2, 3)))
