"""How the camera moved in a clip, and a still world as it would have seen it: features followed, homographies by RANSAC.

For references that do not count camera motion as motion. OpenCV does the following and the fitting.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .errors import InputError

Array = npt.NDArray[np.float64]

# Fewer features that agree say nothing about a camera; a motion of the corners below so many pixels is none.
_FEWEST, _STILL = 12, 0.25
_WINDOW = {"winSize": (15, 15), "maxLevel": 3}


def camera_path(frames: npt.NDArray[np.uint8]) -> Array:
    """Return where the camera looks in each frame, uint8 [T,H,W]: [T,3,3], homographies from the first frame to each.

    Corners are followed from each frame to the next (Lucas-Kanade), and a homography fitted to what most of them agree
    on (RANSAC), so that things that move are left out. Where fewer than 12 agree the camera counts as standing still.
    """
    path = [np.eye(3)]
    for before, after in zip(frames, frames[1:], strict=False):
        path.append(_step(before, after) @ path[-1])
    return np.stack(path)


def following(clip: Tensor, at: int) -> Tensor:
    """Return a clip of frame ``at`` alone, moved as the camera moves: [B,3,T,H,W] → the same shape.

    What frame ``at`` did not show is taken from the frame itself, which claims no motion there. A clip whose camera
    stands still gives frame ``at``, repeated to the last bit. Raises InputError while a static graph is traced.
    """
    if _get_current_dispatch_mode() is not None and not isinstance(clip, torch._subclasses.FakeTensor):
        raise InputError(
            "the camera's motion is estimated from values, which no static graph can: use reference=frames"
        )
    made = clip[:, :, at : at + 1].expand_as(clip).clone()
    for index, one in enumerate(clip.detach().cpu().float().numpy()):
        path = camera_path(_grey(one))
        height, width = one.shape[-2:]
        for step in range(len(path)):
            move = path[step] @ np.linalg.inv(path[at])
            if _displacement(move, height, width) < _STILL:
                continue
            shown = cv2.warpPerspective(np.ones((height, width), np.float32), move, (width, height)) > 0.999
            for channel in range(len(one)):
                moved = cv2.warpPerspective(one[channel, at], move, (width, height))
                seen = np.where(shown, moved, one[channel, step])
                made[index, channel, step] = torch.from_numpy(np.ascontiguousarray(seen)).to(clip)
    return made


def _step(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> Array:
    points = cv2.goodFeaturesToTrack(before, 300, 0.01, 3)
    if points is None or len(points) < _FEWEST:
        return np.eye(3)
    found, known, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, **_WINDOW)  # type: ignore[call-overload]
    kept = known.ravel() == 1
    if kept.sum() < _FEWEST:
        return np.eye(3)
    move, agree = cv2.findHomography(points[kept], found[kept], cv2.RANSAC, 1.0)
    if move is None or agree.sum() < _FEWEST or _displacement(move, *before.shape) > max(before.shape) / 2:
        return np.eye(3)
    # A homography of few points bends where there are none; where a shift says the same, the shift it is.
    shift = np.eye(3)
    shift[:2, 2] = np.median((found - points)[kept][agree.ravel() == 1].reshape(-1, 2), axis=0)
    left = (points[kept] + shift[:2, 2] - found[kept])[agree.ravel() == 1]
    chosen = shift if np.abs(left).max() < 1.0 else move
    return np.asarray(chosen, np.float64)


def _displacement(move: Array, height: int, width: int) -> float:
    """Return how far the corner that moves furthest moves, in pixels."""
    corners = np.array([[[0, 0]], [[width - 1, 0]], [[0, height - 1]], [[width - 1, height - 1]]], np.float64)
    return float(np.linalg.norm(cv2.perspectiveTransform(corners, move) - corners, axis=-1).max())


def _grey(clip: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    mean = clip.mean(0)
    low, high = float(mean.min()), float(mean.max())
    return np.rint((mean - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
