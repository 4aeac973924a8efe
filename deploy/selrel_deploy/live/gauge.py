"""How much of an explanation is motion above what a camera shows that stands still. NumPy alone.

The null are clips of the live view in which nothing moves: the middle frame of a window repeated, with the camera's own
noise, which is estimated from the window. They are explained as the window was, for the same class.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from selrel_zennit.calibration.camera import Camera
from selrel_zennit.clips.cutting import frozen_frame
from selrel_zennit.clips.spec import Frames
from selrel_zennit.explanation import Explanation

FEWEST = 8
"""Still clips that it takes to read the gauge."""
VOXELS = 0.99
"""Of a still clip's voxels in a frame, the share that lies below the threshold."""
CLIPS = 0.95
"""Of still clips, the share that reads 0."""

_KEPT = 24  # still clips
_DRAWN = 4096  # voxels of a frame of a still clip, for the thresholds
_NORMAL = 2.0  # σ above the mean, of which few still clips are
_MAD = 1.4826  # from the median of |x| to the σ of a normal distribution

Map = npt.NDArray[np.floating]


class Reading(NamedTuple):
    """``value`` in 0…1, 0 where a still camera might have shown as much; ``raw``, what was measured, and its ``null``.

    All are NaN before there are still clips enough.
    """

    value: float
    raw: float
    null: float


def noise_of(pixels: Frames) -> float:
    """Return the σ of a clip's noise in grey levels, from the median change from frame to frame: what moves is a part.

    Source: the median absolute deviation; a difference of two frames has √2 times the noise of one.
    """
    steps = np.abs(np.diff(pixels[:, ::2, ::2].astype(np.int16), axis=0))
    median = float(np.median(steps))
    # Whole grey levels: a median of 0 is a noise below ⅔ of one, of which the mean of the steps up to 1 says more.
    if median == 0:
        small = steps[steps <= 1]
        return float(np.sqrt(small.mean() / 2)) if small.size else 0.0
    return _MAD * median / math.sqrt(2)


def still_clip(pixels: Frames, seed: int) -> Frames:
    """Return a window [T,H,W,3] as a still camera would have shown it: its middle frame, with its noise."""
    middle = pixels[frozen_frame(len(pixels))]
    return Camera(noise=min(noise_of(pixels), 60.0)).film(middle, len(pixels), seed)


class Gauge:
    """Motion above the null, of one engine.

    ``motion`` says whether the engine's relevance is itself the part of the margin that is motion (motion_lrp, or a
    split). Its measure is then that part, as a share of the margin. Otherwise it is the share of |R| in voxels that
    change over time by more than the null's thresholds, one for each frame, which are made from every second still
    clip. Either way the null's 95th percentile is taken off; what is left is a share of all there could be.
    """

    def __init__(self, motion: bool) -> None:
        self.motion = motion
        self._changes: deque[npt.NDArray[np.float32]] = deque(maxlen=_KEPT // 2)
        self._maps: deque[Map] = deque(maxlen=_KEPT // 2)
        self._null: deque[float] = deque(maxlen=_KEPT)
        self._thresholds: npt.NDArray[np.float64] | None = None
        self._still = self._fooled = self._seen = 0

    @property
    def ready(self) -> bool:
        """Say whether there are still clips enough."""
        return len(self._null) >= FEWEST

    @property
    def error_rate(self) -> float:
        """The share of still clips, each read before it joined the null, that read above 0; NaN before the first."""
        return self._fooled / self._still if self._still else math.nan

    @property
    def stills(self) -> int:
        """How many still clips the error rate is of."""
        return self._still

    def learn(self, still: Explanation) -> None:
        """Add the explanation of a still clip to the null; where there is one, it is read first."""
        if self.ready:
            self._still += 1
            self._fooled += self.read(still).value > 0
        self._seen += 1
        if not self.motion and self._seen % 2:
            changes = _changes(still.relevance[0]).reshape(len(still.relevance[0]), -1)
            step = max(changes.shape[1] // _DRAWN, 1)
            self._changes.append(changes[:, self._seen % step :: step].astype(np.float32))
            self._thresholds = np.quantile(np.concatenate(self._changes, axis=1), VOXELS, axis=1)
            # The others are measured by what the thresholds are now.
            self._null = deque((self._share(one) for one in self._maps), _KEPT)
        else:
            if not self.motion:
                self._maps.append(still.relevance[0])
            self._null.append(self._raw(still))

    def read(self, explanation: Explanation) -> Reading:
        """Return what the gauge shows for the explanation of a window."""
        if not self.ready:
            return Reading(math.nan, math.nan, math.nan)
        raw, held = self._raw(explanation), np.asarray(self._null)
        # The highest of few is a poor percentile: at least what a normal distribution would give the next one.
        spread = held.std(ddof=1) * math.sqrt(1 + 1 / len(held))
        null = float(max(np.quantile(held, CLIPS), held.mean() + _NORMAL * spread))
        value = (raw - null) / (1 - null) if null < 1 else 0.0
        return Reading(min(max(value, 0.0), 1.0), raw, null)

    def _raw(self, explanation: Explanation) -> float:
        return motion_of_margin(explanation) if self.motion else self._share(explanation.relevance[0])

    def _share(self, relevance: Map) -> float:
        assert self._thresholds is not None
        size = np.abs(relevance.astype(np.float64))
        above = _changes(relevance) > self._thresholds[:, None, None]
        total = float(size.sum())
        return float((size * above).sum()) / total if total > 0 else 0.0


def motion_of_margin(explanation: Explanation) -> float:
    """Return the share of the class's margin over the others that is motion, in 0…1; motion against it counts as 0."""
    logits, target = explanation.logits[0].astype(np.float64), int(explanation.target[0])
    margin = float(logits[target] - np.delete(logits, target).mean()) if len(logits) > 1 else float(logits[target])
    motion = float(explanation.relevance[0].sum(dtype=np.float64))
    if explanation.split is not None:
        motion = float(explanation.split.motion[0])
    return min(max(motion / margin, 0.0), 1.0) if margin > 0 else 0.0


def _changes(relevance: Map) -> Map:
    """Return |R(t+1) − R(t−1)| of a map [T,H,W], the ends repeated."""
    padded = np.concatenate([relevance[:1], relevance, relevance[-1:]])
    return np.asarray(np.abs(padded[2:] - padded[:-2]))
