"""Zennit's colour maps without Zennit: the same names, the same language, the same 256 colours. NumPy alone."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..errors import InputError

# The colour values of Zennit's built-in maps (zennit.image.CMAPS), so that pictures of both can be compared.
COLORMAPS: dict[str, str] = {
    "gray": "000,fff",
    "wred": "fff,f00",
    "wblue": "fff,00f",
    "hot": "000,f00,ff0,fff",
    "cold": "000,00f,0ff",
    "coldnhot": "0ff,00f,80:000,f00,ff0,fff",
    "bwr": "00f,80:fff,f00",
    "france": "0055a4,80:fff,ef4135",
    "seismic": "0000d0,80:d0d0d0,d00000",
    "coolio": "00d0d0,80:d0d0d0,d000d0",
    "coleus": "00d000,80:d0d0d0,d000d0",
}

_NODE = re.compile(r"(?:([0-9a-f]{1,2})\s*:\s*)?([0-9a-f]{6}|[0-9a-f]{3})", re.IGNORECASE)


def palette(cmap: str, level: float = 1.0) -> npt.NDArray[np.uint8]:
    """Return the 256 RGB colours of a map, uint8 [256,3], equal to ``zennit.image.palette(cmap, level)``.

    ``cmap`` is a name of ``COLORMAPS`` or Zennit's colour map language: colours in hexadecimal (3 or 6 digits),
    separated by commas, each with an optional position 0…ff before it: ``"00f,80:fff,f00"``. Colours without a
    position are spaced evenly between their neighbours. ``level`` stretches the map about its centre: above 1 the ends
    are reached early, below 1 never.

    Raises InputError for an unknown name, a text that is not a colour map, or a level that is negative or not finite.
    """
    if not (np.isfinite(level) and level >= 0):
        raise InputError(f"level must be a finite number of at least 0, got {level!r}; 1 is the plain colour map")
    positions, colours = _nodes(COLORMAPS.get(cmap, cmap))
    wanted = np.clip((np.arange(256) / 255.0 - 0.5) * level + 0.5, 0.0, 1.0) * 255.0
    channels = [np.interp(wanted, positions, colours[:, channel]) for channel in range(3)]
    # A node hit exactly must give its own colour although the sum above may fall short of it by one rounding error.
    return np.asarray(np.floor(np.stack(channels, axis=1) + 1e-9), np.uint8)


@lru_cache(maxsize=64)
def _nodes(source: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Parse the colour map language → positions [N] in 0…255, rising, and RGB colours [N,3] in 0…255."""
    matches = [_NODE.fullmatch(part.strip()) for part in source.split(",")]
    if len(matches) < 2 or None in matches:
        known = ", ".join(COLORMAPS)
        raise InputError(
            f"unknown colour map {source!r}: choose one of {known}, or give colours as in '00f,80:fff,f00'"
        )
    positions: list[float] = []
    colours: list[list[int]] = []
    for match in matches:
        assert match is not None
        index, colour = match.groups()
        positions.append(np.nan if index is None else int(index * 2 if len(index) == 1 else index, 16))
        digits = colour if len(colour) == 6 else "".join(digit * 2 for digit in colour)
        colours.append([int(digits[start : start + 2], 16) for start in (0, 2, 4)])
    if np.isnan(positions[0]):
        positions[0] = 0.0
    if np.isnan(positions[-1]):
        positions[-1] = 255.0
    places = np.asarray(positions)
    given = np.flatnonzero(~np.isnan(places))
    if (np.diff(places[given]) < 0).any():
        raise InputError(f"colour map {source!r}: positions must rise from left to right")
    places = np.floor(np.interp(np.arange(len(places)), given, places[given]) + 1e-9)
    return places, np.asarray(colours, np.float64)
