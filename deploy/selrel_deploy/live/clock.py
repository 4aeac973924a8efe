"""A clock in the pixels of a frame: the page reads it back and knows how old what it shows is. NumPy alone."""

from __future__ import annotations

import numpy as np

from selrel_zennit.clips.spec import Frames

BITS = 20
"""Of the milliseconds of the wall clock: they come round every 17 minutes."""
CELL = 4
"""Pixels of a bit's side, so that it survives JPEG."""
_MARK = (1, 0, 1)  # before the bits; one of parity follows


def stamp(frame: Frames, milliseconds: int) -> Frames:
    """Return a frame [H,W,3] with a row of black and white cells at its top left: 1 0 1, the time, its parity.

    A frame that is too narrow for the row is returned as it is.
    """
    time = milliseconds % 2**BITS
    bits = [*_MARK, *(time >> bit & 1 for bit in reversed(range(BITS))), time.bit_count() % 2]
    if frame.shape[1] < len(bits) * CELL or frame.shape[0] < CELL:
        return frame
    stamped = frame.copy()
    stamped[:CELL, : len(bits) * CELL] = np.repeat(np.array(bits, np.uint8) * 255, CELL)[None, :, None]
    return stamped


def read_stamp(frame: Frames) -> int | None:
    """Return the time in a frame, milliseconds modulo 2^BITS; None where there is none. What the page does."""
    count = len(_MARK) + BITS + 1
    if frame.shape[1] < count * CELL:
        return None
    middle = CELL // 2
    bits = [int(frame[middle, cell * CELL + middle, 1] > 127) for cell in range(count)]
    time = int("".join(map(str, bits[len(_MARK) : -1])), 2)
    return time if tuple(bits[: len(_MARK)]) == _MARK and time.bit_count() % 2 == bits[-1] else None
