"""Animated WebP → frames, in constant memory.

FFmpeg 8 does not read the container, but its decoder takes every picture in it once that is put into a file of its own;
what a viewer composes of them is composed here. Source: RFC 9649, WebP Image Format, §2.7.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError

from ..errors import InputError
from .display import alpha_of

Canvas = npt.NDArray[np.uint8]

_AGAIN = "copy, download or record it again"
_ANIMATED, _HAS_ALPHA = 0x02, 0x10
_TO_BACKGROUND, _NO_BLENDING = 0x01, 0x02
_HEAD = 16  # of an ANMF chunk: place, size, duration, flags


class _Picture(NamedTuple):
    left: int
    top: int
    width: int
    height: int
    milliseconds: int
    flags: int
    chunks: bytes


def is_animated_webp(source: Path) -> bool:
    """Say whether a file is a WebP of more than one picture, as its head has it."""
    with source.open("rb") as file:
        head = file.read(21)
    return len(head) == 21 and head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20] & _ANIMATED)


def webp_timing(source: Path) -> tuple[int, float | None]:
    """Return how many frames an animated WebP has, and frames per second, the average where it varies."""
    durations = [picture.milliseconds for picture in _pictures(source)]
    total = sum(durations)
    return len(durations), 1000 * len(durations) / total if total else None


def decode_webp(source: Path) -> Iterator[av.VideoFrame]:
    """Yield the frames of an animated WebP as they are seen, with alpha. Raises InputError for a damaged one."""
    with source.open("rb") as file:
        head = file.read(30)
    width, height = _whole(head[24:27]) + 1, _whole(head[27:30]) + 1
    canvas = np.zeros((height, width, 4), np.uint8)
    number = -1
    for number, picture in enumerate(_pictures(source)):
        try:
            drawn = _decode(picture)
            place = canvas[picture.top : picture.top + picture.height, picture.left : picture.left + picture.width]
            if drawn.shape != place.shape:
                raise ValueError("the picture does not fit")
        except (FFmpegError, ValueError) as error:
            raise InputError(f"{source} is damaged: decoding breaks after {number} frames; {_AGAIN}") from error
        place[:] = drawn if picture.flags & _NO_BLENDING else _over(drawn, place)
        yield av.VideoFrame.from_ndarray(canvas, format="rgba")
        if picture.flags & _TO_BACKGROUND:
            place[:] = 0
    stated, size = _sizes(source)
    if size < stated:
        raise InputError(f"{source} is truncated: it breaks off after {number + 1} frames; {_AGAIN}")


def _pictures(source: Path) -> Iterator[_Picture]:
    end = min(_sizes(source))
    with source.open("rb") as file:
        file.seek(12)
        while file.tell() < end:
            name, content = _chunk(file)
            if content is None:
                return
            if name == b"ANMF" and len(content) > _HEAD:
                left, top, width, height, duration = (_whole(content[at : at + 3]) for at in range(0, 15, 3))
                yield _Picture(2 * left, 2 * top, width + 1, height + 1, duration, content[15], content[_HEAD:])


def _sizes(source: Path) -> tuple[int, int]:
    """Return how many bytes a file says that it has, and how many it has."""
    with source.open("rb") as file:
        return 8 + int.from_bytes(file.read(8)[4:], "little"), source.stat().st_size


def _chunk(file: BinaryIO) -> tuple[bytes, bytes | None]:
    """Return a chunk's name and content, None where the file ends before it does."""
    head = file.read(8)
    if len(head) < 8:
        return b"", None
    name, length = struct.unpack("<4sI", head)
    content = file.read(length)
    file.seek(length % 2, os.SEEK_CUR)
    return name, content if len(content) == length else None


def _decode(picture: _Picture) -> Canvas:
    """Decode a picture as the still WebP that it would be, to RGBA."""
    flags = _HAS_ALPHA if picture.chunks.startswith(b"ALPH") else 0
    size = struct.pack("<II", picture.width - 1, picture.height - 1)
    extended = struct.pack("<4sII", b"VP8X", 10, flags) + size[:3] + size[4:7]
    body = b"WEBP" + extended + picture.chunks
    decoder = av.CodecContext.create("webp", "r")
    frames = decoder.decode(av.Packet(b"RIFF" + struct.pack("<I", len(body)) + body)) + decoder.decode(None)
    if len(frames) != 1:
        raise ValueError(f"{len(frames)} pictures where one is due")
    frame = frames[0]
    assert isinstance(frame, av.VideoFrame)
    rgba = np.full((frame.height, frame.width, 4), 255, np.uint8)
    rgba[..., :3] = frame.reformat(format="rgb24").to_ndarray()
    if (alpha := alpha_of(frame)) is not None:
        rgba[..., 3] = alpha
    return rgba


def _over(drawn: Canvas, ground: Canvas) -> Canvas:
    """Blend a picture over what is there; colours are not multiplied by alpha."""
    if drawn[..., 3].min() == 255:
        return drawn
    above = drawn[..., 3:].astype(np.float32) / 255
    below = ground[..., 3:].astype(np.float32) / 255 * (1 - above)
    alpha = above + below
    colours = (drawn[..., :3] * above + ground[..., :3] * below) / np.maximum(alpha, np.float32(1e-6))
    blended: Canvas = np.rint(np.concatenate([colours, 255 * alpha], axis=2)).astype(np.uint8)
    return blended


def _whole(three_bytes: bytes) -> int:
    return int.from_bytes(three_bytes, "little")
