"""How sprites move: eight flows on a space of states that leave the distribution of states as it is.

A state is four numbers in turns, each on a circle: x, y, orientation and logarithmic size. x and y are positions on a
frame that wraps around; size runs from the smallest to the largest and starts again. States begin uniform on this
torus. Each class moves one coordinate at a constant speed, one way or the other. A shift along a circle keeps the
uniform distribution, so at every frame of every class the state is uniform: one frame and its index say nothing about
the class, and the reversed clip of a class is a clip of its opposite.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Time-reversal pairs stand side by side: the opposite of class k is class k ^ 1.
CLASSES = ("left", "right", "up", "down", "counter-clockwise", "clockwise", "shrinking", "growing")

# Turns per frame, least and greatest, of x, y, orientation and logarithmic size. On 112 pixels: 2.5 to 5 pixels, 8 to
# 14 degrees, and 4.8 to 8.3 percent of size.
_SPEEDS = np.array([[0.0225, 0.045], [0.0225, 0.045], [0.0225, 0.039], [0.05, 0.085]])

# The radius of a sprite's circumscribed circle, as a share of the frame's short side.
_RADII = (0.11, 0.28)

# Uniform numbers that one trajectory takes before its random steps: a state and four speeds.
_DRAWS = 8


def opposite(class_index: int) -> int:
    """Return the class of the time-reversed clip."""
    return class_index ^ 1


def steady(rng: np.random.Generator, frames: int, class_index: int) -> Array:
    """Return states [T,4] in turns, not wrapped, that follow one class from a random state at a random speed."""
    start, speeds = _start(rng)
    return _follow(start, speeds, np.full(frames - 1, class_index))


def erratic(rng: np.random.Generator, frames: int) -> Array:
    """Return states [T,4] in turns, not wrapped, where each step is that of a class drawn afresh.

    Every single step looks like a step of some class, and every state is uniform too; only persistence tells this
    motion from a steady one. It is its own time reversal in distribution.
    """
    start, speeds = _start(rng)
    return _follow(start, speeds, (rng.random(frames - 1) * len(CLASSES)).astype(np.int64))


def _start(rng: np.random.Generator) -> tuple[Array, Array]:
    draws = rng.random(_DRAWS)
    return draws[:4], _SPEEDS[:, 0] + draws[4:] * (_SPEEDS[:, 1] - _SPEEDS[:, 0])


def _follow(start: Array, speeds: Array, classes: npt.NDArray[np.int64]) -> Array:
    steps = np.zeros((len(classes) + 1, 4))
    steps[np.arange(1, len(steps)), classes // 2] = np.where(classes % 2, 1.0, -1.0) * speeds[classes // 2]
    return start + np.cumsum(steps, axis=0)


def pose(states: Array, height: int, width: int) -> Array:
    """Turn states [T,4] in turns into [T,4]: x and y in pixels (not wrapped), angle in radians, radius in pixels.

    Angles grow clockwise on the screen, because y points down.
    """
    low, high = (min(height, width) * share for share in _RADII)
    radius = low * (high / low) ** (states[:, 3] % 1.0)
    return np.stack([states[:, 0] * width, states[:, 1] * height, states[:, 2] * (2 * np.pi), radius], axis=1)


def largest_radius(height: int, width: int) -> float:
    """Return the greatest radius of a sprite, in pixels."""
    return min(height, width) * _RADII[1]
