"""Decoded frames → what a viewer sees: pixels that are square, upright, in RGB; and notes on what that took."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple, cast

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideData
from av.video.reformatter import VideoReformatter

Frames = npt.NDArray[np.uint8]

_QUARTER_TURNS = ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0))  # see _display_axes; clockwise
# Nobody sees less, and resampling blurs: encoders that round a size to even pixels state such ratios.
_NEARLY_SQUARE = Fraction(1, 100)
_MOST_ASPECT = 8
_DEINTERLACE = "ffmpeg -i IN -vf bwdif=send_frame OUT.mp4"


class Decoded(NamedTuple):
    """A frame as decoded, and what its stream says of it.

    label       str            what messages call it
    frame       av.VideoFrame  as stored
    aspect      Fraction       width of a stored pixel over its height; 1 where the file does not say
    interlaced  bool           the stream says that frames hold two moments, whatever the frame itself says
    lost_alpha  bool           there is an alpha channel that the decoder left out
    """

    label: str
    frame: av.VideoFrame
    aspect: Fraction = Fraction(1)
    interlaced: bool = False
    lost_alpha: bool = False


def shown(decoded: Decoded, reformatter: VideoReformatter) -> Frames:
    """Return the picture as it is to be seen, uint8 [H,W,3] RGB.

    The axis along which pixels are too short is stretched, so that no detail is lost.
    """
    frame = decoded.frame
    pixels = cast(Frames, reformatter.reformat(frame, format="rgb24").to_ndarray())
    height, width = _square_size(decoded)
    if (height, width) != pixels.shape[:2]:
        pixels = cast(Frames, cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR))
    a, b, c, d = _display_axes(frame)
    if a == 0:
        pixels, horizontal, vertical = pixels.transpose(1, 0, 2), c, b
    else:
        horizontal, vertical = a, d
    return np.ascontiguousarray(pixels[::vertical, ::horizontal])


def shown_size(decoded: Decoded) -> tuple[int, int, int]:
    """Return height and width of what ``shown`` returns, and by how many degrees clockwise it was turned."""
    height, width = _square_size(decoded)
    rotation, _ = _orientation(decoded.frame)
    return (width, height, rotation) if rotation % 180 else (height, width, rotation)


def alpha_of(frame: av.VideoFrame) -> Frames | None:
    """Return the alpha channel of a frame as stored, uint8 [H,W], or None where it has none."""
    if not (frame.format.has_palette or any(component.is_alpha for component in frame.format.components)):
        return None
    if frame.format.name in ("yuva420p", "yuva422p", "yuva444p"):
        # FFmpeg's way from these to four bytes a pixel leaves columns at the right as they were in memory.
        plane = frame.planes[3]
        return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
    return cast(Frames, frame.reformat(format="rgba", threads=1).to_ndarray()[..., 3])


def notes_on(first: Decoded, second: Decoded) -> list[str]:
    """Return what is done to frames like these beyond decoding, and what is not, for humans."""
    frame, notes = first.frame, []
    colours = [component for component in frame.format.components if not component.is_alpha]
    if len(colours) == 1 and not frame.format.has_palette:
        notes.append("greyscale: repeated to three channels")
    if first.lost_alpha or _is_transparent(frame) or _is_transparent(second.frame):
        notes.append("alpha channel dropped")
    bits = max(component.bits for component in colours)
    if bits > 8:
        notes.append(f"{bits} bits per channel: reduced to 8")
    notes += _notes_on_aspect(first)
    # An encoder may begin with a whole frame.
    if first.interlaced or frame.interlaced_frame or second.frame.interlaced_frame:
        notes.append(f"interlaced: a frame holds two moments, line by line; deinterlace it first: {_DEINTERLACE}")
    rotation, mirrored = _orientation(frame)
    if mirrored:
        notes.append("mirrored left to right, as its metadata says")
    if rotation:
        notes.append(f"rotated by {rotation}° clockwise, as its metadata says")
    return notes


def _square_size(decoded: Decoded) -> tuple[int, int]:
    """Return the height and width, before any turn, in which pixels are square."""
    height, width, aspect = decoded.frame.height, decoded.frame.width, decoded.aspect
    if _is_believable(aspect) and abs(aspect - 1) > _NEARLY_SQUARE:
        return (height, round(width * aspect)) if aspect > 1 else (round(height / aspect), width)
    return height, width


def _is_believable(aspect: Fraction) -> bool:
    return Fraction(1, _MOST_ASPECT) <= aspect <= _MOST_ASPECT


def _notes_on_aspect(decoded: Decoded) -> list[str]:
    aspect, stored = decoded.aspect, (decoded.frame.height, decoded.frame.width)
    ratio = f"{aspect.numerator}:{aspect.denominator}"
    if not _is_believable(aspect):
        return [f"pixels said to be {ratio}, which no camera makes: taken for square"]
    if (square := _square_size(decoded)) == stored:
        return []
    (height, width), (new_height, new_width) = stored, square
    return [f"pixels are {ratio}, not square: {width}×{height} resampled to {new_width}×{new_height}"]


def _is_transparent(frame: av.VideoFrame) -> bool:
    alpha = alpha_of(frame)
    return alpha is not None and bool(alpha.min() < 255)


def _display_axes(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Return (a, b, c, d), each −1, 0 or 1: what is at (x, y) is to be shown at (ax + cy, bx + dy), y downwards.

    Source: ISO/IEC 14496-12, the matrix of the track header; FFmpeg hands Exif orientation over in the same form.
    """
    try:
        side_data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV 18.1 fails on kinds of side data it does not know, Exif among them. What is left is the turn, without a
        # mirror, which no camera writes.
        return _QUARTER_TURNS[round(-frame.rotation / 90) % 4]
    if not isinstance(side_data, SideData):
        return _QUARTER_TURNS[0]
    matrix = np.frombuffer(bytes(side_data), np.int32)
    a, b, c, d = (round(int(matrix[index]) / 65536) for index in (0, 1, 3, 4))
    # Turns that are not by right angles are left alone, as they would need resampling.
    is_right = sorted(map(abs, (a, b, c, d))) == [0, 0, 1, 1] and a * d != b * c
    return (a, b, c, d) if is_right else _QUARTER_TURNS[0]


def _orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """Return degrees clockwise, and whether the frame is mirrored left to right before it is turned."""
    a, b, c, d = _display_axes(frame)
    mirrored = a * d - b * c < 0
    turns = [axes[:2] for axes in _QUARTER_TURNS].index((-a, -b) if mirrored else (a, b))
    return 90 * turns, mirrored
