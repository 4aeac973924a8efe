"""Videos with a part of what they show taken away: what a network still knows tells what it looks at.

``appearance-free`` leaves motion alone: frames of noise that moves as the video does (after Ilic, Pock and Wildes, "Is
Appearance Free Action Recognition Possible?", ECCV 2022). ``stripes`` puts stripes in place of the background, and
``still-foreground`` freezes what stands before them, so that neither scene nor motion is left (after the SCUBA and
SCUFO videos of arXiv 2211.12883, whose masks are made by networks: here by boxes, or by what moves).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from ..clips.cutting import freeze
from ..clips.spec import Frames
from ..errors import InputError
from ..text import close_names
from .dataset import Box

Mask = npt.NDArray[np.bool_]

# What is off the median picture by more grey levels than this moves; what is smaller than so many pixels is noise.
_OFF, _GRAIN = 24, 5
# A pixel whose way there and back ends more than so many pixels from itself was covered before.
_FARTHEST = 1.0


def controlled(frames: Frames, control: str, box: Box | None = None, seed: int = 0) -> Frames:
    """Return frames uint8 [N,H,W,3] under a control of CONTROLS; ``box`` is what ``stripes`` keep, where it is given.

    Raises InputError for another name.
    """
    if control not in CONTROLS:
        raise InputError(f"no control {control!r}{close_names(control, CONTROLS)}; there are: {', '.join(CONTROLS)}")
    return CONTROLS[control](frames, box, np.random.default_rng(seed))


def foreground(frames: Frames, box: Box | None = None) -> Mask:
    """Return what is not background, bool [N,H,W]: a box, or what is off the median picture (a camera that stands)."""
    mask = np.zeros(frames.shape[:3], np.bool_)
    if box is not None:
        left, top, right, bottom = (round(value) for value in box)
        mask[:, top:bottom, left:right] = True
        return mask
    median = np.median(frames, axis=0)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_GRAIN, _GRAIN))
    for one, frame in zip(mask, frames, strict=True):
        off = (np.abs(frame - median).max(-1) > _OFF).astype(np.uint8)
        one[:] = cv2.dilate(cv2.morphologyEx(off, cv2.MORPH_OPEN, kernel), kernel).astype(np.bool_)
    return mask


def _appearance_free(frames: Frames, box: Box | None, random: np.random.Generator) -> Frames:
    """Noise, each frame of it the last one's moved along the flow, new where something was uncovered."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    height, width = grey[0].shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    made = random.integers(0, 256, frames.shape, np.uint8)
    for t in range(1, len(frames)):
        back = np.asarray(flow.calc(grey[t], grey[t - 1], None))  # type: ignore[call-overload]
        forth = np.asarray(flow.calc(grey[t - 1], grey[t], None))  # type: ignore[call-overload]
        x, y = columns + back[..., 0], rows + back[..., 1]
        returned = back + cv2.remap(forth, x, y, cv2.INTER_LINEAR, borderValue=(1e3, 1e3))
        seen = np.hypot(returned[..., 0], returned[..., 1]) <= _FARTHEST
        # Nearest neighbours: anything smoother would wash the noise out within a few frames.
        at = np.clip(np.rint(y), 0, height - 1).astype(int), np.clip(np.rint(x), 0, width - 1).astype(int)
        made[t][seen] = made[t - 1][at][seen]
    return made


def _stripes(frames: Frames, box: Box | None, random: np.random.Generator) -> Frames:
    """The foreground before stripes of a random direction, width and two random colours."""
    angle, period = random.random() * np.pi, 8 + 24 * random.random()
    low, high = random.integers(0, 256, (2, 3))
    rows, columns = np.mgrid[: frames.shape[1], : frames.shape[2]]
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * (columns * np.cos(angle) + rows * np.sin(angle)) / period)
    picture = np.rint(low + wave[..., None] * (high - low)).astype(np.uint8)
    return np.where(foreground(frames, box)[..., None], frames, picture)


def _still_foreground(frames: Frames, box: Box | None, random: np.random.Generator) -> Frames:
    return freeze(_stripes(frames, box, random))


CONTROLS: dict[str, Callable[[Frames, Box | None, np.random.Generator], Frames]] = {
    "appearance-free": _appearance_free,
    "stripes": _stripes,
    "still-foreground": _still_foreground,
}
