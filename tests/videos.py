"""Videos made for tests, and ways to damage them."""

from __future__ import annotations

import struct
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from selrel_zennit.errors import InputError

RATE = 25
RED, GREEN, BLUE, WHITE = (200, 40, 40), (40, 180, 60), (30, 60, 210), (230, 230, 230)


def moving_square(count=30, height=72, width=96):
    """Smooth pictures that lossy codecs keep well; the square's place tells one frame from another."""
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = np.linspace(40, 120, width)[None, None, :, None]
    for index, frame in enumerate(frames):
        left = 2 * index % (width - 24)
        frame[height // 4 : height // 4 + 24, left : left + 24] = RED
    return frames


def quadrants(count=3, height=64, width=96):
    """Four flat colours, so that a turned or mirrored picture shows."""
    frames = np.empty((count, height, width, 3), np.uint8)
    middle, centre = height // 2, width // 2
    frames[:, :middle, :centre], frames[:, :middle, centre:] = RED, GREEN
    frames[:, middle:, :centre], frames[:, middle:, centre:] = BLUE, WHITE
    return frames


def encode(
    path,
    frames,
    codec,
    pix_fmt="yuv420p",
    source_format="rgb24",
    stamps=None,
    container=None,
    options=None,
    aspect=None,
):
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=RATE, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        if aspect:
            stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=source_format)
            picture.pts = stamps[index] if stamps else index
            picture.time_base = Fraction(1, RATE)
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return path


def encode_mp4(path, frames, faststart=False, **options):
    flags = {"movflags": "+faststart"} if faststart else {}
    return encode(path, frames, "libx264", container=flags, options={"crf": "12", **options})


def set_track_matrix(path, a, b, c, d):
    """Write the matrix of the track header (ISO/IEC 14496-12, §8.3.2) into an mp4."""
    data = bytearray(path.read_bytes())
    tkhd = data.index(b"tkhd") + 4
    assert data[tkhd] == 0
    # version and flags, four times and identities, reserved, duration …: the matrix begins 40 bytes into the box.
    struct.pack_into(">9i", data, tkhd + 40, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def cut(path, share):
    cut_path = path.with_name(f"cut_{path.name}")
    data = path.read_bytes()
    cut_path.write_bytes(data[: int(len(data) * share)])
    return cut_path


def folder_of(path, frames, name="frame{}.png", first=1):
    path.mkdir()
    for index, frame in enumerate(frames, first):
        assert cv2.imwrite(str(path / name.format(index)), frame[..., ::-1])
    return path


def fails(function, *args, **kwargs):
    with pytest.raises(InputError) as error:
        function(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    assert ";" in message, "a remedy follows the semicolon"
    return message


def mean_difference(frames, expected):
    assert frames.dtype == np.uint8
    assert frames.shape == expected.shape
    return np.abs(frames.astype(float) - expected).mean()
