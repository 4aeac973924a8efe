"""How the camera moved in a clip, and a still world as it would have seen it.

For references that do not count camera motion as motion. Shifts are tried one by one; for what turns and zooms, OpenCV
follows corners (Lucas and Kanade) and fits a homography (RANSAC).
"""

from __future__ import annotations

from itertools import pairwise, product

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .errors import InputError

Array = npt.NDArray[np.float64]

Grey = npt.NDArray[np.uint8]

# Fewer corners that agree say nothing about a camera; a motion of the frame's corners below so many pixels is none.
_FEWEST, _STILL = 12, 0.25
# A pixel off by more counts as off by so many grey levels: what moves by itself. A less simple motion must fit better
# by this factor.
_FARTHEST, _BETTER = 16.0, 0.9
# Where pixels are off by more than so many grey levels on average after the best motion, it is doubtful: on clips of
# the generator whose camera was met it was at most 2.4, where the camera went farther than is tried 4.6 and more.
_DOUBTFUL = 3.5
# Steps of up to so many pixels are tried, of frames made as small as 128.
_REACH = 12


def camera_path(frames: Grey) -> Array:
    """Return where the camera looks in each frame, uint8 [T,H,W]: [T,3,3], homographies from the first frame to each.

    Of no motion, shifts and a homography, the step from each frame to the next is the one that fits best, pixel by
    pixel: what moves by itself is outvoted as long as it is small. A camera before a blank wall counts as still.
    """
    path = [np.eye(3)]
    for before, after in pairwise(frames):
        path.append(_step(before, after) @ path[-1])
    return np.stack(path)


def doubtful_steps(clip: Tensor) -> int:
    """Return at how many steps of clips [B,3,T,H,W] no motion of a camera explains one frame by the one before.

    The camera went farther than is tried (12 pixels of a frame of 128), or too much moves by itself.
    """
    found = 0
    for one in clip.detach().cpu().float().numpy():
        for before, after in pairwise(_grey(one)):
            found += _misfit(_step(before, after), before, after) > _DOUBTFUL
    return found


def camera_paths(clip: Tensor) -> list[Array]:
    """Return the camera path of each clip of [B,3,T,H,W]. Raises InputError while a static graph is traced."""
    if get_proxy_mode() is not None:
        raise InputError(
            "the camera's motion is estimated from values, which no static graph can: use reference=frames"
        )
    return [camera_path(_grey(one)) for one in clip.detach().cpu().float().numpy()]


def following(clip: Tensor, at: int, paths: list[Array] | None = None) -> Tensor:
    """Return a clip of frame ``at`` alone, moved as the camera moves: [B,3,T,H,W] → the same shape.

    What frame ``at`` did not show is taken from the frame itself, which claims no motion there. A clip whose camera
    stands still gives frame ``at``, repeated to the last bit. ``paths`` are the clip's camera paths, where they are
    known already. Raises InputError while a static graph is traced.
    """
    paths = camera_paths(clip) if paths is None else paths
    made = clip[:, :, at : at + 1].expand_as(clip).clone()
    for index, one in enumerate(clip.detach().cpu().float().numpy()):
        path = paths[index]
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


def _step(before: Grey, after: Grey) -> Array:
    """Return the motion that fits best: none, a shift, or a homography; the simpler one where they are even."""
    candidates = [np.eye(3), _best_shift(before, after), *_by_features(before, after)]
    best, least = candidates[0], _misfit(candidates[0], before, after)
    for move in candidates[1:]:
        misfit = _misfit(move, before, after)
        if misfit < _BETTER * least:
            best, least = move, misfit
    return best


def _best_shift(before: Grey, after: Grey) -> Array:
    """Try every shift of up to 12 pixels, of frames that are made small first: a wave or a wall has no corners."""
    scale = max(1, round(max(before.shape) / 128))
    first, second = (
        cv2.resize(frame, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA) for frame in (before, after)
    )
    height, width = first.shape
    best, least = (0, 0), np.inf
    for y, x in sorted(product(range(-_REACH, _REACH + 1), repeat=2), key=lambda shift: abs(shift[0]) + abs(shift[1])):
        own = first[max(-y, 0) : height - max(y, 0), max(-x, 0) : width - max(x, 0)]
        other = second[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)]
        misfit = cv2.mean(cv2.threshold(cv2.absdiff(own, other), _FARTHEST, 0, cv2.THRESH_TRUNC)[1])[0]
        if misfit < least:
            best, least = (y, x), misfit
    return _shift(best[1] * scale, best[0] * scale)


def _by_features(before: Grey, after: Grey) -> list[Array]:
    """Follow corners (Lucas-Kanade) and fit what most of them agree on: a homography, and their median shift."""
    points = cv2.goodFeaturesToTrack(before, 300, 0.01, 3)
    if points is None or len(points) < _FEWEST:
        return []
    found, known, _ = cv2.calcOpticalFlowPyrLK(before, after, points, points.copy(), winSize=(15, 15), maxLevel=3)
    points, found = points[known.ravel() == 1], found[known.ravel() == 1]
    if len(points) < _FEWEST:
        return []
    move, agree = cv2.findHomography(points, found, cv2.RANSAC, 1.0)
    if move is None or agree.sum() < _FEWEST or _displacement(move, *before.shape) > max(before.shape) / 2:
        return []
    x, y = np.median((found - points)[agree.ravel() == 1].reshape(-1, 2), axis=0)
    return [_shift(float(x), float(y)), np.asarray(move, np.float64)]


def _shift(x: float, y: float) -> Array:
    move = np.eye(3)
    move[:2, 2] = x, y
    return move


def _misfit(move: Array, before: Grey, after: Grey) -> float:
    """Return how far pixels are off after a motion, in grey levels, each counted to 16: the mean of those in view."""
    height, width = before.shape
    moved = cv2.warpPerspective(before.astype(np.float32), move, (width, height), borderValue=-1)
    off = np.minimum(np.abs(moved - after), _FARTHEST)[moved >= 0]
    return float(off.mean()) if off.size > before.size / 2 else _FARTHEST


def _displacement(move: Array, height: int, width: int) -> float:
    """Return how far the corner that moves furthest moves, in pixels."""
    corners = np.array([[[0, 0]], [[width - 1, 0]], [[0, height - 1]], [[width - 1, height - 1]]], np.float64)
    return float(np.linalg.norm(cv2.perspectiveTransform(corners, move) - corners, axis=-1).max())


def _grey(clip: npt.NDArray[np.float32]) -> Grey:
    mean = clip.mean(0)
    low, high = float(mean.min()), float(mean.max())
    scaled: Grey = np.rint((mean - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    return scaled
