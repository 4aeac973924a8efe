"""Does the answer need motion? The margin of a clip whose frames are frozen, shuffled or reversed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..attribution.target import Target, one_hot, resolve_target
from ..errors import InputError
from ..network.output import logits_of

SHUFFLES = 8


@dataclass(frozen=True, eq=False)
class Counterfactuals:
    """Margins of one clip over the other classes, float64, of the same class throughout.

    ``clip`` is the clip's own, ``frozen`` [T] that of each of its frames repeated, ``shuffled`` [n] of its frames in
    random orders, ``backwards`` of its frames in reverse. No map and no mask has a part in them.
    """

    clip: float
    frozen: npt.NDArray[np.float64]
    shuffled: npt.NDArray[np.float64]
    backwards: float

    def to_dict(self) -> dict[str, Any]:
        """Return the margins as JSON takes them."""
        frozen, shuffled = self.frozen.tolist(), self.shuffled.tolist()
        return {"clip": self.clip, "frozen": frozen, "shuffled": shuffled, "reversed": self.backwards}


def counterfactuals(
    model: nn.Module, clip: Tensor, target: Target = "top1", *, shuffles: int = SHUFFLES, seed: int = 0, batch: int = 4
) -> Counterfactuals:
    """Return the margins of a clip [1,3,T,H,W] as it is, frozen to each frame, shuffled and reversed.

    ``target`` is that of the clip as it is. ``batch`` clips run at once. Raises InputError for more than one clip, and
    a network with one class.
    """
    if clip.ndim != 5 or len(clip) != 1:
        raise InputError(f"counterfactuals are of one clip [1,3,T,H,W], got {tuple(clip.shape)}")
    steps = clip.shape[2]
    rng = np.random.default_rng(seed)

    def orders() -> Iterator[npt.NDArray[np.int64]]:
        yield np.arange(steps)
        for step in range(steps):
            yield np.full(steps, step)
        for _ in range(shuffles):
            yield rng.permutation(steps)
        yield np.arange(steps)[::-1].copy()

    indices = [torch.from_numpy(order) for order in orders()]
    with torch.inference_mode():
        parts = [
            logits_of(model, torch.cat([clip[:, :, order.to(clip.device)] for order in indices[first : first + batch]]))
            for first in range(0, len(indices), batch)
        ]
        logits = torch.cat(parts).double()
        if logits.shape[1] < 2:
            raise InputError("a model with one class has no margin over others")
        chosen = resolve_target(target, logits[:1], getattr(model, "class_names", None))
        of_class = one_hot(chosen, logits.shape[1]).to(logits)
        weights = of_class - (1 - of_class) / (logits.shape[1] - 1)
        margins = (logits * weights).sum(1).cpu().numpy()
    return Counterfactuals(float(margins[0]), margins[1 : steps + 1], margins[steps + 1 : -1], float(margins[-1]))
