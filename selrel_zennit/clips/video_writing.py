"""Frames → mp4, gif and png, each written whole or not at all. Used through ``video``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from typing import cast

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.codec import Codec
from av.container import OutputContainer
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.stream import VideoStream

from ..errors import InputError
from ..files import atomic_path

Frames = npt.NDArray[np.uint8]

_H264_ENCODERS = ("libx264", "libopenh264")


def write_mp4(path: str | os.PathLike[str], frames: Frames | Iterable[Frames], fps: float) -> None:
    """Write frames, uint8 [N,H,W,3] RGB or an iterable of [H,W,3], as H.264 (yuv420p, BT.709) that a browser plays.

    Odd sizes are padded to even by repeating the last row and column. The file appears whole or not at all.
    Raises InputError for frames of another kind, for no frames, and where this build of PyAV has no H.264 encoder.
    """
    encoder = next(filter(_can_encode, _H264_ENCODERS), None)
    if encoder is None:
        raise InputError(f"{path}: this build of PyAV has no H.264 encoder; write a .gif, or pip install a wheel of av")
    with atomic_path(path) as temporary:
        container = av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"})
        with container:
            stream: VideoStream | None = None
            for index, frame in enumerate(_checked(frames)):
                even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
                if stream is None:
                    stream = _h264_stream(container, encoder, even.shape[:2], _fraction(fps))
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
                picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
                picture.pts, picture.time_base = index, 1 / _fraction(fps)
                container.mux(stream.encode(picture))
            assert stream is not None
            container.mux(stream.encode(None))


def write_gif(path: str | os.PathLike[str], frames: Frames | Iterable[Frames], fps: float) -> None:
    """Write frames, uint8 [N,H,W,3] RGB or an iterable of [H,W,3], as a GIF that repeats, with a palette of their own.

    GIF counts time in 1/100 s, and browsers slow down above 50 frames per second. All frames are held in memory until
    the palette is known. The file appears whole or not at all. Raises InputError for frames of another kind or none.
    """
    checked = _checked(frames)
    first = next(checked)
    rate = _fraction(fps)
    graph = Graph()
    source = graph.add_buffer(
        width=first.shape[1], height=first.shape[0], format=VideoFormat("rgb24"), time_base=1 / rate
    )
    split, palette, use = graph.add("split"), graph.add("palettegen"), graph.add("paletteuse")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    with atomic_path(path) as temporary:
        container = av.open(str(temporary), "w", format="gif")
        with container:
            stream = container.add_stream("gif", rate=rate)
            stream.height, stream.width = first.shape[:2]
            stream.pix_fmt = "pal8"
            for index, frame in enumerate(chain([first], checked)):
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                picture.pts, picture.time_base = index, 1 / rate
                source.push(picture)
            source.push(None)
            for number in range(index + 1):
                drawn = cast(av.VideoFrame, sink.pull())
                drawn.pts, drawn.time_base = number, 1 / rate
                container.mux(stream.encode(drawn))
            container.mux(stream.encode(None))


def write_png(path: str | os.PathLike[str], image: Frames) -> None:
    """Write one picture, uint8 [H,W,3] RGB, as PNG, whole or not at all. Raises InputError for another array."""
    (checked,) = _checked([image])
    _, data = cv2.imencode(".png", checked[..., ::-1])
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _checked(frames: Frames | Iterable[Frames]) -> Iterator[Frames]:
    """Yield frames to write. Raises InputError for none, and for one that does not fit."""
    first = None
    for index, frame in enumerate(frames):
        is_array = isinstance(frame, np.ndarray)
        if not is_array or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            got = f"{frame.dtype} {frame.shape}" if is_array else type(frame).__name__
            raise InputError(f"frames to write must be uint8 [H,W,3], got {got} for frame {index}")
        first = frame.shape if first is None else first
        if frame.shape != first:
            raise InputError(f"frames to write must share one shape, got {first} and, for frame {index}, {frame.shape}")
        yield frame
    if first is None:
        raise InputError("no frames to write; give one or more")


def _fraction(fps: float) -> Fraction:
    if not 0 < fps < 1000:
        raise InputError(f"fps must lie between 0 and 1000, got {fps}")
    # 1001 is the denominator of broadcast rates such as 30000/1001.
    return Fraction(fps).limit_denominator(1001)


def _can_encode(name: str) -> bool:
    try:
        Codec(name, "w")
    except ValueError:
        return False
    return True


def _h264_stream(container: OutputContainer, encoder: str, size: tuple[int, ...], rate: Fraction) -> VideoStream:
    stream = container.add_stream(encoder, rate=rate, options={"crf": "18"} if encoder == "libx264" else {})
    assert isinstance(stream, VideoStream)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    # Without these a player guesses the colours from the size. 1 is BT.709 in ITU-T H.273, and the narrow range.
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
    return stream
