"""Zennit's explanations, which every row of a benchmark is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selrel_zennit.attribution import VideoAttributor
from selrel_zennit.explanation import Explanation
from selrel_zennit.pipeline import explain
from selrel_zennit.selection.selections import MotionSelection

Array = npt.NDArray[Any]


class ZennitExplains:
    """Explains a clip [1,3,T,H,W] as a user of Zennit does; ``seconds`` takes up what the stages took."""

    def __init__(self, attributor: VideoAttributor, selection: MotionSelection) -> None:
        self.attributor, self.selection = attributor, selection

    def __call__(self, clip: Array, target: Any = None, seconds: dict[str, float] | None = None) -> Explanation:
        """Return the explanation of a class; None or −1: the top one."""
        wanted = "top1" if target is None or int(target) == -1 else int(target)
        tensor = torch.from_numpy(np.ascontiguousarray(clip))
        return explain(
            self.attributor.model, tensor, self.attributor, wanted, selection=self.selection, seconds=seconds
        )


class Remembered:
    """Explanations, each computed once: every row is compared with the same ones."""

    def __init__(self, explain: Callable[..., Explanation]) -> None:
        self._explain = explain
        self._known: dict[tuple[bytes, int], Explanation] = {}

    def __call__(self, clip: Array, target: Any = None) -> Explanation:
        """Return the explanation, computed at the first call with this clip and class."""
        wanted = -1 if target is None else int(np.asarray(target).reshape(-1)[0])
        key = (clip.tobytes(), wanted)
        if key not in self._known:
            self._known[key] = self._explain(clip, wanted)
        return self._known[key]
