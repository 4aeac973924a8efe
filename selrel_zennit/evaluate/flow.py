"""Optical flow between successive frames, by estimators of well-kept libraries."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import cv2
import numpy as np

from ..clips.spec import FloatArray, Frames
from ..errors import InputError

Estimator = Callable[[Frames, Frames], FloatArray]


def optical_flow(pixels: Frames, estimator: str = "farneback") -> FloatArray:
    """Return the flow of frames 0 to T−2, float32 [T-1,H,W,2], x then y, of pixels uint8 [T,H,W,3].

    ``estimator``: "farneback" with the settings of the authors' code (0.5, 3, 15, 3, 5, 1.2), "dis" (OpenCV's medium
    preset), or "tvl1" (scikit-image's, slow). Raises InputError for another name, or where scikit-image is missing.
    """
    if estimator not in FLOWS:
        raise InputError(f"no optical flow named {estimator!r}; there are: {', '.join(FLOWS)}")
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in pixels])
    estimate = FLOWS[estimator]()
    return np.stack([estimate(first, second) for first, second in itertools.pairwise(grey)])


def _farneback() -> Estimator:
    def estimate(first: Frames, second: Frames) -> FloatArray:
        none = np.zeros((*first.shape, 2), np.float32)
        return np.asarray(cv2.calcOpticalFlowFarneback(first, second, none, 0.5, 3, 15, 3, 5, 1.2, 0), np.float32)

    return estimate


def _dis() -> Estimator:
    found = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def estimate(first: Frames, second: Frames) -> FloatArray:
        return np.asarray(found.calc(first, second, None), np.float32)  # type: ignore[call-overload]

    return estimate


def _tvl1() -> Estimator:
    try:
        from skimage.registration import optical_flow_tvl1
    except ModuleNotFoundError:
        raise InputError("tvl1 needs scikit-image: pip install 'selrel-zennit[evaluate]'") from None

    def estimate(first: Frames, second: Frames) -> FloatArray:
        rows, columns = optical_flow_tvl1(  # type: ignore[no-untyped-call]
            first.astype(np.float32) / 255, second.astype(np.float32) / 255
        )
        return np.stack([columns, rows], axis=-1).astype(np.float32)

    return estimate


FLOWS: dict[str, Callable[[], Estimator]] = {"farneback": _farneback, "dis": _dis, "tvl1": _tvl1}
