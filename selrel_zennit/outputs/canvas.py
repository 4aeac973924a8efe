"""Canvas: text, bars and lines on a picture, with OpenCV alone (it has no layout of its own)."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import InputError

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

BACKGROUND: Colour = (17, 19, 24)
SURFACE: Colour = (38, 42, 51)
TEXT: Colour = (238, 240, 244)
MUTED: Colour = (158, 164, 176)
ACCENT: Colour = (255, 178, 62)
SERIES: Colour = (148, 178, 232)

# Colours are named by what they are for; a theme says what each of them is. The ones above are those of "dark".
# "light" keeps to 4.5:1 on white for everything that is text.
THEMES: dict[str, dict[Colour, Colour]] = {
    "dark": {},
    "light": {
        BACKGROUND: (255, 255, 255),
        SURFACE: (232, 235, 240),
        TEXT: (24, 28, 36),
        MUTED: (92, 98, 110),
        ACCENT: (168, 84, 0),
        SERIES: (40, 86, 168),
    },
}

# OpenCV 5 brings outline fonts that know Unicode; OpenCV 4 has the Hershey strokes, ASCII alone.
_FONT_FACE: Any = getattr(cv2, "FontFace", None)
_WEIGHTS = {False: 400, True: 600}
_HERSHEY = cv2.FONT_HERSHEY_SIMPLEX
_HERSHEY_HEIGHT = 31.0  # pixels from ascender to descender at scale 1, to match the size of an outline font
_READABLE = {"σ": "sigma", "×": "x", "–": "-", "—": "-", "…": "...", "’": "'", "÷": "/", "±": "+/-", "·": "-"}


def plain_ascii(text: str) -> str:
    """Return ``text`` in printable ASCII: accents dropped, known signs spelled out, ``?`` for the rest."""
    spelled = "".join(_READABLE.get(character, character) for character in text)
    folded = "".join(c for c in unicodedata.normalize("NFKD", spelled) if not unicodedata.combining(c))
    return "".join(character if " " <= character <= "~" else "?" for character in folded)


class Canvas:
    """A picture to draw on: ``pixels`` uint8 [h,w,3] RGB. Positions are (x, y) in pixels from the top left.

    ``theme`` is a name of THEMES; colours are given as those of "dark". Raises InputError for another name.
    """

    def __init__(self, height: int, width: int, theme: str = "dark") -> None:
        if theme not in THEMES:
            raise InputError(f"no theme named {theme!r}; there are: {', '.join(THEMES)}")
        self.theme = THEMES[theme]
        self.pixels: Pixels = np.full((height, width, 3), self.themed(BACKGROUND), np.uint8)

    def themed(self, colour: Colour) -> Colour:
        """Return what a colour is in this canvas's theme."""
        return self.theme.get(colour, colour)

    @classmethod
    def copy_of(cls, other: Canvas) -> Canvas:
        """Return a canvas with the same picture, to draw on without touching the other."""
        new = cls.__new__(cls)
        new.pixels, new.theme = other.pixels.copy(), other.theme
        return new

    def paste(self, picture: Pixels, x: int, y: int) -> None:
        """Put ``picture`` [h,w,3] with its top left corner at (x, y)."""
        self.pixels[y : y + picture.shape[0], x : x + picture.shape[1]] = picture

    def fill(self, x: int, y: int, width: int, height: int, colour: Colour) -> None:
        """Fill a rectangle; one of no size draws nothing."""
        self.pixels[y : y + max(height, 0), x : x + max(width, 0)] = self.themed(colour)

    def line(self, points: Sequence[tuple[float, float]], colour: Colour, thickness: int = 1) -> None:
        """Draw a smooth line through ``points``; a single point becomes a dot."""
        colour = self.themed(colour)
        scaled = [np.rint(np.asarray(point) * 16).astype(np.int32) for point in points]
        if len(scaled) == 1:
            cv2.circle(self.pixels, scaled[0].tolist(), 3 * 16, colour, -1, cv2.LINE_AA, 4)
        else:
            cv2.polylines(self.pixels, [np.stack(scaled)], False, colour, thickness, cv2.LINE_AA, 4)

    def text(
        self,
        text: str,
        x: int,
        y: int,
        size: int = 15,
        colour: Colour = TEXT,
        *,
        bold: bool = False,
        align: Literal["left", "centre", "right"] = "left",
        width: int | None = None,
    ) -> int:
        """Write one line with its baseline at y; return its width. Longer than ``width``: cut, with three dots."""
        text, colour = " ".join(text.split()), self.themed(colour)
        if width is not None and text_width(text, size, bold) > width:
            while text and text_width(text + "...", size, bold) > width:
                text = text[:-1]
            text = text.rstrip() + "..."
        advance = text_width(text, size, bold)
        left = x - {"left": 0, "centre": advance // 2, "right": advance}[align]
        if _FONT_FACE is not None:
            cv2.putText(self.pixels, text, (left, y), colour, _FONT_FACE("sans"), size, _WEIGHTS[bold])
        else:
            self._strokes(plain_ascii(text), left, y, size, colour, bold)
        return advance

    def _strokes(self, text: str, x: int, y: int, size: int, colour: Colour, bold: bool) -> None:
        # Drawn at three times the size and averaged: at its own size a Hershey font is thin and uneven.
        cover = np.zeros((3 * 2 * size, 3 * (text_width(text, size, bold) + 4), 1), np.uint8)
        scale = 3 * size / _HERSHEY_HEIGHT
        cv2.putText(cover, text, (3, 3 * int(1.4 * size)), _HERSHEY, scale, (255,), _thickness(size, bold), cv2.LINE_AA)
        small = cv2.resize(cover, (cover.shape[1] // 3, cover.shape[0] // 3), interpolation=cv2.INTER_AREA)
        top, left = max(y - int(1.4 * size), 0), max(x, 0)
        small = small[top - (y - int(1.4 * size)) :, left - x :]
        patch = self.pixels[top : top + small.shape[0], left : left + small.shape[1]]
        alpha = small[: patch.shape[0], : patch.shape[1], None] / 255.0
        patch[:] = np.rint(patch * (1 - alpha) + np.asarray(colour) * alpha).astype(np.uint8)


def text_width(text: str, size: int, bold: bool = False) -> int:
    """Return the width of one line of text in pixels."""
    if _FONT_FACE is not None:
        box = cv2.getTextSize((1, 1), text, (0, 0), _FONT_FACE("sans"), size, _WEIGHTS[bold])
        return int(box[2])
    (width, _), _ = cv2.getTextSize(plain_ascii(text), _HERSHEY, 3 * size / _HERSHEY_HEIGHT, _thickness(size, bold))
    return -(-width // 3)


def _thickness(size: int, bold: bool) -> int:
    return max(round(size * (0.29 if bold else 0.21)), 2)
