"""What goes to the page: a JSON header, then pictures, in one message. NumPy and OpenCV alone."""

from __future__ import annotations

import json
import struct
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from selrel_zennit.clips.spec import Frames
from selrel_zennit.explanation import Explanation
from selrel_zennit.outputs.painter import PERCENTILE, colour_scale

WIDEST = 480
"""Pixels of the longer side of the live picture."""
MOST_SHOWN = 8
"""Frames of a window that are sent with its maps."""

_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 80]
_FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]


def packet(header: dict[str, Any], *pictures: bytes) -> bytes:
    """Return a message: the header's length in four bytes, most significant first, the header, the pictures.

    The header's ``sizes`` are the bytes of each picture. It is plain JSON: what is no number is null.
    """
    text = json.dumps({**header, "sizes": [len(one) for one in pictures]}, allow_nan=False).encode()
    return b"".join((struct.pack(">I", len(text)), text, *pictures))


def parse(message: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Return the header and the pictures of a message; what the page does, in Python."""
    (length,) = struct.unpack_from(">I", message)
    header = json.loads(message[4 : 4 + length])
    pictures, at = [], 4 + length
    for size in header["sizes"]:
        pictures.append(message[at : at + size])
        at += size
    return header, pictures


def jpeg(picture: Frames) -> bytes:
    """Return a picture uint8 [H,W,3] RGB as a JPEG file."""
    return cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), _QUALITY)[1].tobytes()


def view_picture(frame: Frames) -> bytes:
    """Return a camera's frame as a JPEG file of at most ``WIDEST`` pixels."""
    height, width = frame.shape[:2]
    scale = WIDEST / max(height, width)
    if scale < 1:
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        frame = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
    return jpeg(frame)


def shown_steps(steps: int, newest: int) -> npt.NDArray[np.int64]:
    """Return which frames of a window of ``steps`` to show: of its ``newest``, at most ``MOST_SHOWN``, the last one."""
    count = min(newest, steps, MOST_SHOWN)
    return np.linspace(steps - min(newest, steps), steps - 1, count + 1).round().astype(np.int64)[1:]


def maps_of(
    explanation: Explanation, pixels: Frames, steps: npt.NDArray[np.int64]
) -> tuple[dict[str, Any], bytes, bytes]:
    """Return what a header says of the maps, the frames as a JPEG sheet, and the maps as a PNG sheet in grey.

    Frames lie below each other; so do the layers, all frames of one before those of the next. In the maps 128 is
    relevance 0, and 1 and 255 are the ends of a layer's scale: one for R and its motion, another for the two parts of
    the margin.
    """
    layers = {"relevance": explanation.relevance[0], "motion": explanation.motion_relevance[0]}
    scales = {name: colour_scale(explanation.relevance, percentile=PERCENTILE)[1] for name in layers}
    if explanation.split is not None:
        parts = {"motion_part": explanation.split.motion_part[0], "static_part": explanation.split.static_part[0]}
        scale = colour_scale(np.stack(list(parts.values())), percentile=PERCENTILE)[1]
        layers, scales = layers | parts, scales | dict.fromkeys(parts, scale)
    height, width = layers["relevance"].shape[1:]
    grey = [
        np.rint(np.clip(values[steps] / scales[name], -1, 1) * 127 + 128).astype(np.uint8)
        for name, values in layers.items()
    ]
    sheet = np.concatenate(grey).reshape(-1, width)
    frames = pixels[steps]
    if frames.shape[1:3] != (height, width):
        frames = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])
    header = {"layers": list(layers), "frames": len(steps), "height": height, "width": width}
    return (
        header,
        jpeg(frames.reshape(-1, width, 3)),
        cv2.imencode(".png", sheet, _FAST)[1].tobytes(),
    )
