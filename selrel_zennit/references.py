"""References: clips in which nothing moves, made of a clip, to tell what motion changes.

Each is made of ``clip`` [B,3,T,H,W] alone, and is the clip itself where nothing moves in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .errors import InputError

REFERENCES = {
    "frames": "several of its frames, each repeated: explanations are averaged over them",
    "middle": "its middle frame repeated",
    "median": "the median of each pixel over time, repeated: the empty scene, where the camera stands",
    "camera": "several of its frames, each moved as the camera moves: a still world seen by a moving camera",
}

Reference = Callable[[Tensor], Tensor]


def make_reference(kind: str = "frames", frames: int = 4) -> Reference:
    """Return what makes references of a clip: [B,3,T,H,W] → [K,B,3,T,H,W].

    ``kind`` is one of REFERENCES. ``frames`` is K, the number of frames that "frames" and "camera" take, evenly spaced
    (2, 6, 10 and 14 of 16 for 4), at most one for each frame there is; the others make one reference. "camera" looks at
    the clip's values, so that no static graph can hold it.

    Raises InputError for another kind, or a number of frames that is none.
    """
    if kind not in REFERENCES:
        raise InputError(f"no reference named {kind!r}; there are {', '.join(REFERENCES)}")
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
        raise InputError(f"frames must be a whole number of 1 or more, got {frames!r}")
    if kind == "median":
        return _median
    if kind == "camera":
        return lambda clip: _camera(clip, frames)
    count = frames if kind == "frames" else 1
    return lambda clip: torch.stack([_still(clip, at) for at in evenly_spaced(clip.shape[2], count)])


def evenly_spaced(steps: int, frames: int) -> list[int]:
    """Return the indices of ``frames`` of ``steps`` frames, in the middle of as many equal parts; all where too few."""
    count = min(frames, steps)
    return [(2 * part + 1) * steps // (2 * count) for part in range(count)]


def _still(clip: Tensor, at: int) -> Tensor:
    return clip[:, :, at : at + 1].expand_as(clip)


def _camera(clip: Tensor, frames: int) -> Tensor:
    from .camera_motion import camera_paths, following

    paths = camera_paths(clip)
    return torch.stack([following(clip, at, paths) for at in evenly_spaced(clip.shape[2], frames)])


def _median(clip: Tensor) -> Tensor:
    # Sorted by comparisons in a fixed order, which any runtime has. The lower of two middle values is one that the clip
    # has, so that a still clip is its own median to the last bit.
    frames = list(clip.unbind(2))
    for first, second in _comparators(len(frames)):
        frames[first], frames[second] = (
            torch.minimum(frames[first], frames[second]),
            torch.maximum(frames[first], frames[second]),
        )
    return frames[(len(frames) - 1) // 2].unsqueeze(2).expand_as(clip)[None]


def _comparators(count: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs that sort ``count`` values when they are put in order one after the other (Batcher 1968)."""
    width = 1
    while width < count:
        step = width
        while step >= 1:
            for start in range(step % width, count - step, 2 * step):
                for first in range(start, min(start + step, count - step)):
                    if first // (2 * width) == (first + step) // (2 * width):
                        yield first, first + step
            step //= 2
        width *= 2
