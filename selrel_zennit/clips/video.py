"""Video files and folders of frames → frames; the writers are at hand here too. PyAV is the one decoder."""

from __future__ import annotations

import io
import operator
import os
import re
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ..errors import InputError
from .animated_webp import decode_webp, is_animated_webp, webp_timing
from .display import Decoded, notes_on, shown, shown_size
from .video_writing import write_gif as write_gif
from .video_writing import write_mp4 as write_mp4
from .video_writing import write_png as write_png

Frames = npt.NDArray[np.uint8]

DEFAULT_FPS = 25.0
"""Frames per second of what has no rate of its own: a folder of frames, a stream that does not state one."""

_IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_COPY_AGAIN = "copy, download or record it again"
_REPAIR = f"{_COPY_AGAIN}, or re-encode what is left of it: ffmpeg -i IN OUT.mp4"
# Of AVFieldOrder: 0 unknown, above it the ways of interlacing.
_PROGRESSIVE = 1
_GIVE_VIDEO = "give a video file (mp4, avi, gif, webm, mkv, webp) or a folder of numbered frames"


@dataclass(frozen=True)
class VideoInfo:
    """What a source of frames is.

    path      str           as it was given
    frames    int | None    as the container says (None: it does not say); counted for a folder
    height    int           square pixels, after rotation
    width     int           square pixels, after rotation
    fps       float         frames per second, the average where it varies; 25 for a folder
    rotation  int           degrees clockwise by which frames are turned to stand upright: 0, 90, 180 or 270
    notes     tuple of str  what is done to the frames beyond decoding, and what is not, for humans
    """

    path: str
    frames: int | None
    height: int
    width: int
    fps: float
    rotation: int
    notes: tuple[str, ...]


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Say what a source of frames is. Decodes two frames at most, so damage further on goes unseen.

    Raises InputError, one line, for what is not a video, and for a source of fewer than two frames.
    """
    source = _existing(path)
    with closing(_decode(source)) as decoded:
        begin = list(islice(decoded, 2))
    _check_total(source, len(begin))
    notes = notes_on(*begin)
    height, width, rotation = shown_size(begin[0])
    frames, fps = _stated(source)
    if fps is None:
        notes.append(f"no frame rate stated: {DEFAULT_FPS:g} frames per second assumed")
    return VideoInfo(str(path), frames, height, width, fps or DEFAULT_FPS, rotation, tuple(notes))


def iter_frames(path: str | os.PathLike[str], start: int = 0, count: int | None = None) -> Iterator[Frames]:
    """Yield the frames of a video file or a folder one by one, each uint8 [H,W,3] RGB, in constant memory.

    ``start`` is the index of the first frame, ``count`` how many at most (None: to the end). Frames are those stored:
    at a variable rate none is repeated or dropped. They are turned upright as the file's metadata says, and where that
    says that pixels are not square, resampled until they are. Greyscale is repeated to three channels, an alpha channel
    is dropped. Interlaced frames stay as they are (``probe`` tells). A folder holds images of one size, sorted by the
    numbers in their names (frame2 before frame10); files of other kinds in it are ignored.

    Raises InputError, one line, at the call for a path that does not exist and for numbers that cannot be; on the way
    for what is not a video or is damaged; and, at the end of the source, where it is cut short, has fewer than two
    frames (motion needs two) or ends before ``start``. Who asks for no more than is there never comes to the end.
    """
    source = _existing(path)
    start, count = operator.index(start), None if count is None else operator.index(count)
    if start < 0:
        raise InputError(f"start must be 0 or more, got {start}; frames are counted from 0")
    if count is not None and count < 1:
        raise InputError(f"count must be 1 or more, got {count}; leave it out to read to the end")
    return _iterate(source, start, None if count is None else start + count)


def read_frames(path: str | os.PathLike[str], start: int = 0, count: int | None = None) -> Frames:
    """Read the frames of a video file or a folder, uint8 [N,H,W,3] RGB. See ``iter_frames``, also for the errors."""
    frames = deque(iter_frames(path, start, count))
    stacked = np.empty((len(frames), *frames[0].shape), np.uint8)
    # Each frame is freed once it is copied: a long video is not held twice.
    for index in range(len(stacked)):
        stacked[index] = frames.popleft()
    return stacked


def _iterate(source: Path, start: int, stop: int | None) -> Iterator[Frames]:
    reformatter = VideoReformatter()
    total, first, first_label = 0, None, ""
    with closing(_decode(source)) as decoded:
        for raw in decoded:
            total += 1
            if total <= start:
                continue
            frame = shown(raw, reformatter)
            if first is None:
                first, first_label = frame.shape, raw.label
            elif frame.shape != first:
                sizes = f"{frame.shape[1]}×{frame.shape[0]} and {first_label} {first[1]}×{first[0]} pixels"
                raise InputError(f"{source}: {raw.label} is {sizes}; bring all frames to one size")
            yield frame
            if total == stop:
                return
    _check_total(source, total, start)


def _check_total(source: Path, total: int, start: int = 0) -> None:
    """Refuse a source, read to its end, that cannot serve."""
    if total < 2:
        what = "no frames" if total == 0 else "only 1 frame, and motion needs 2 or more"
        raise InputError(f"{source} has {what}; {_GIVE_VIDEO}")
    if start >= total:
        raise InputError(f"{source} has {total} frames, start {start} lies beyond; choose a start in 0…{total - 1}")


def _existing(path: str | os.PathLike[str]) -> Path:
    source = Path(path)
    if not source.exists():
        raise InputError(f"{source} does not exist; {_GIVE_VIDEO}")
    if source.is_file() and source.stat().st_size == 0:
        raise InputError(f"{source} is empty (0 bytes); {_COPY_AGAIN}")
    return source


def _stated(source: Path) -> tuple[int | None, float | None]:
    """Return how many frames, and frames per second, the container states."""
    if source.is_dir():
        return len(_images(source)), DEFAULT_FPS
    if is_animated_webp(source):
        return webp_timing(source)
    with _open(source) as container:
        stream = _video_stream(source, container)
        return stream.frames or None, _rate(container, stream)


def _rate(container: InputContainer, stream: VideoStream) -> float | None:
    rate = stream.average_rate or stream.guessed_rate
    # FFmpeg averages over the first frames of a GIF, whose delays may differ.
    if container.format.name == "gif" and stream.frames and stream.duration and stream.time_base:
        rate = stream.frames / (stream.duration * stream.time_base)
    return float(rate) if rate else None


def _decode(source: Path) -> Generator[Decoded, None, None]:
    if source.is_dir():
        for file in _images(source):
            yield _decode_image(file)
    elif is_animated_webp(source):
        for index, frame in enumerate(decode_webp(source)):
            yield Decoded(f"frame {index}", frame)
    else:
        yield from _decode_video(source)


def _images(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir() if file.suffix.lower() in _IMAGES and not file.name.startswith(".")]
    if not files:
        raise InputError(f"{folder} is a folder without images ({' '.join(sorted(_IMAGES))}); {_GIVE_VIDEO}")
    return sorted(files, key=_natural)


def _natural(file: Path) -> tuple[list[str | int], str]:
    # Split at numbers: text and numbers alternate, so that like is compared with like.
    parts = re.split(r"([0-9]+)", file.name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], file.name


def _decode_image(file: Path) -> Decoded:
    if is_animated_webp(file):
        raise InputError(f"{file} is an animation, not one image; give it by itself, or take it out of the folder")
    try:
        # From memory: given a name, FFmpeg would take % and * in it for a pattern of many files.
        with av.open(io.BytesIO(file.read_bytes()), "r") as container:
            return Decoded(file.name, next(container.decode(video=0)), _aspect(container.streams.video[0]))
    except (FFmpegError, StopIteration, IndexError) as error:
        raise InputError(f"{file} is not an image that can be read; replace it or take it out of the folder") from error


def _open(source: Path) -> InputContainer:
    try:
        # Files alone: a playlist must not make the decoder fetch what it names.
        container = av.open(f"file:{source}", options={"protocol_whitelist": "file"})
    except FFmpegError as error:
        if _looks_like_video(source):
            raise InputError(f"{source} is truncated: its index is missing or broken; {_COPY_AGAIN}") from error
        raise InputError(f"{source} is not a video; {_GIVE_VIDEO}") from error
    # FFmpeg renders any text file as pictures of a terminal.
    if container.format.name == "tty":
        container.close()
        raise InputError(f"{source} is not a video but text; {_GIVE_VIDEO}")
    return container


def _looks_like_video(source: Path) -> bool:
    with source.open("rb") as file:
        head = file.read(12)
    is_mp4 = head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
    return is_mp4 or head[8:] == b"AVI " or head.startswith((b"GIF8", b"\x1aE\xdf\xa3"))


def _video_stream(source: Path, container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise InputError(f"{source} holds no decodable pictures (audio or data only); {_GIVE_VIDEO}")
    # Chosen only where nothing else is there.
    if stream.disposition & Disposition.attached_pic:
        raise InputError(f"{source} holds no video: its one picture is a cover, as audio files have; {_GIVE_VIDEO}")
    stream.thread_type = "AUTO"
    return stream


def _aspect(stream: VideoStream) -> Fraction:
    return stream.sample_aspect_ratio or Fraction(1)


def _loses_alpha(container: InputContainer, stream: VideoStream) -> bool:
    """Say whether an alpha channel lies where FFmpeg does not look: beside the pictures, in a layer or a stream."""
    if stream.metadata.get("alpha_mode") == "1":
        return True
    # FFmpeg gives no word on what the second track of an AVIF sequence is; its kind alone, grey, tells.
    return container.metadata.get("major_brand") in ("avif", "avis") and any(
        "gray" in str(other.codec_context.pix_fmt)
        for other in container.streams.video
        if other is not stream and (other.frames, other.width) == (stream.frames, stream.width)
    )


class _Packets:
    """The whole packets of a video stream, then None to flush the decoder; and whether the file ends too early."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.container, self.stream = container, stream
        self.end, self.cut = 0.0, False

    def __iter__(self) -> Iterator[av.Packet[Any] | None]:
        # Matroska states one duration for all its streams: the last packet of any of them counts.
        streams = self.container.streams if "matroska" in self.container.format.name else [self.stream]
        for packet in self.container.demux(*streams):
            if not packet.size:
                continue
            if self._is_partial(packet):
                self.cut = True
                break
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                self.end = max(self.end, float((stamp + (packet.duration or 0)) * packet.time_base))
            if packet.stream is self.stream:
                yield packet
        yield None

    def _is_partial(self, packet: av.Packet[Any]) -> bool:
        if self.container.format.name == "gif":
            # A picture ends in a block of length 0; the last one may be followed by the trailer.
            return not bytes(packet).rstrip(b";").endswith(b"\0")
        # In a broadcast stream the flag marks a lost piece, which the decoder conceals; in a file, its end.
        return packet.is_corrupt and self.container.format.name != "mpegts"

    def is_truncated(self) -> bool:
        """Say whether the packets end before the end that the container states, where its word can be relied on.

        Its frame count cannot (edit lists, dropped frames), its times can, but for a few frames at the end.
        """
        name, stream = self.container.format.name, self.stream
        rate = _rate(self.container, stream)
        stated = None
        if "mp4" in name and stream.duration and stream.time_base:
            stated = float(stream.duration * stream.time_base)
        elif "matroska" in name and self.container.duration:
            stated = self.container.duration / av.time_base
        elif name == "avi" and rate:
            stated = stream.frames / rate
        if stated is None or rate is None:
            return self.cut
        return self.cut or self.end < stated - max(3.5 / rate, 0.02 * stated)


def _decode_video(source: Path) -> Iterator[Decoded]:
    with _open(source) as container:
        stream = _video_stream(source, container)
        packets, total = _Packets(container, stream), 0
        # For codecs whose frames themselves do not tell. PyAV 17 does not know it.
        interlaced = getattr(stream.codec_context, "field_order", 0) > _PROGRESSIVE
        about = _aspect(stream), interlaced, _loses_alpha(container, stream)
        try:
            for packet in packets:
                try:
                    decoded = stream.codec_context.decode(packet)
                except FFmpegError:
                    # A recording may begin between two key frames: nothing before the first one can be decoded.
                    if total or packet is None:
                        raise
                    continue
                for frame in decoded:
                    total += 1
                    yield Decoded(f"frame {total - 1}", frame, *about)
        except FFmpegError as error:
            raise InputError(f"{source} is damaged: decoding breaks after {total} frames; {_REPAIR}") from error
        if packets.is_truncated():
            raise InputError(f"{source} is truncated: it breaks off after {total} frames; {_REPAIR}")
