"""Where live frames come from: a camera, an address, a file that is looped, or the embedded clip."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import av
import cv2
import numpy as np
from av.error import FFmpegError

from selrel_zennit.clips.spec import Frames
from selrel_zennit.clips.video import DEFAULT_FPS, iter_frames, probe
from selrel_zennit.errors import InputError
from selrel_zennit.synthetic import demo_frames

SCHEMES = ("rtsp", "rtsps", "http", "https")
_EMBEDDED_RATE = 16.0
_PATIENCE = (10.0, 5.0)  # seconds to open an address, and to wait for its next packet


class Frame(NamedTuple):
    """A frame uint8 [H,W,3] RGB, when it came (``time.monotonic``), and whether it begins anew: after a cut or a gap.

    No clip reaches over a frame that begins: what changes there is no motion.
    """

    pixels: Frames
    at: float
    begins: bool


class Source(ABC):
    """Frames as they come. ``name`` may be shown; ``rate`` is in frames per second; ``lives`` where it may come back.

    ``open`` yields frames until the source ends; it raises InputError where it cannot be had, or breaks off.
    """

    name: str
    rate: float = DEFAULT_FPS
    lives = True

    @abstractmethod
    def open(self) -> Iterator[Frames]:
        """Yield frames uint8 [H,W,3] RGB, each as soon as it is there."""


class Looped(Source):
    """What is played at its own pace, again and again: a file, a folder of frames, or the embedded clip."""

    lives = False

    def __init__(self, path: str | None) -> None:
        if path is None:
            self.name, self.rate = "embedded clip", _EMBEDDED_RATE
            clip = demo_frames()
            self._read: Callable[[], Iterator[Frames]] = lambda: iter(clip)
            return
        found = probe(path)
        self.name, self.rate = path.replace("\\", "/").rstrip("/").rpartition("/")[2], found.fps
        self._read = lambda: iter_frames(path)

    def open(self) -> Iterator[Frames]:
        """Yield every frame once; see ``Source.open``."""
        return self._read()


class Camera(Source):
    """A camera of this machine, by its number."""

    def __init__(self, number: int) -> None:
        self.number, self.name = number, f"camera {number}"

    def open(self) -> Iterator[Frames]:
        """Yield frames until the camera is gone; see ``Source.open``."""
        camera = cv2.VideoCapture(self.number)
        try:
            if not camera.isOpened():
                raise InputError(f"{self.name} does not open: plug it in, or give another number")
            self.rate = camera.get(cv2.CAP_PROP_FPS) or DEFAULT_FPS
            while True:
                there, picture = camera.read()
                if not there:
                    raise InputError(f"{self.name} gives no more frames: plug it in again")
                yield np.ascontiguousarray(picture[..., ::-1])
        finally:
            camera.release()


class Address(Source):
    """A stream by its address. Its user name, password and query are never shown."""

    def __init__(self, address: str) -> None:
        self._address, self.name = address, redacted(address)

    def open(self) -> Iterator[Frames]:
        """Yield frames until the stream ends; see ``Source.open``."""
        options = {"rtsp_transport": "tcp"} if self._address.lower().startswith("rtsp") else {}
        try:
            with av.open(self._address, timeout=_PATIENCE, options=options) as container:
                if not container.streams.video:
                    raise InputError(f"{self.name} holds no video: give another address")
                stream = container.streams.video[0]
                self.rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
                for frame in container.decode(stream):
                    yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        except (FFmpegError, OSError) as error:
            # The error's own text holds the address.
            said = getattr(error, "strerror", None) or type(error).__name__
            raise InputError(f"{self.name} does not answer ({said}): check the address and the camera") from None


def redacted(address: str) -> str:
    """Return an address as it may be shown: scheme, host, port and path alone."""
    parts = urlsplit(address)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def open_source(text: str | None) -> Source:
    """Return the source that a text names: a camera's number, an address, a path; None: the embedded clip.

    Raises InputError for a file that is no video, and for an address of another kind.
    """
    if text is None:
        return Looped(None)
    if text == "":
        raise InputError("SOURCE is empty: give a camera number, an address or a file")
    if text.isdecimal() and len(text) <= 3:
        return Camera(int(text))
    scheme, colon, _ = text.partition("://")
    if colon:
        if scheme.lower() not in SCHEMES:
            raise InputError(f"SOURCE is an address of {scheme}://: give one of {', '.join(SCHEMES)}, or a file")
        try:
            known = bool(urlsplit(text).hostname and urlsplit(text).port != 0)
        except ValueError:
            known = False
        if not known:
            raise InputError("SOURCE is an address without a host, or with a wrong port: give SCHEME://HOST:PORT/PATH")
        return Address(text)
    return Looped(text)


class Capture:
    """Reads a source for ever: a file is looped at its own pace, what broke off is opened again, later and later.

    ``fault`` says in one sentence why no frames come; None while they do. ``reopened`` counts.
    """

    def __init__(
        self, source: Source, take: Callable[[Frame], None], *, wait: float = 0.5, longest: float = 8.0
    ) -> None:
        self.source, self._take = source, take
        self._wait, self._longest = wait, longest
        self.fault: str | None = None
        self.frames = self.reopened = 0

    def run(self, stop: threading.Event) -> None:
        """Read until ``stop`` is set."""
        wait = self._wait
        while not stop.is_set():
            before = self.frames
            try:
                self._once(stop)
                if self.source.lives and not stop.is_set():
                    self.fault = f"{self.source.name} has ended: it is opened again"
            except InputError as error:
                self.fault = str(error)
            except Exception as error:  # a decoder's own: the page says it, and the next try may do
                self.fault = f"{self.source.name} cannot be read ({type(error).__name__}): check the source"
            self.reopened += self.fault is not None
            wait = self._wait if self.frames > before else min(2 * wait, self._longest)
            if self.fault is not None:
                stop.wait(wait)

    def _once(self, stop: threading.Event) -> None:
        begins, due = True, time.monotonic()
        frames: Any = self.source.open()
        try:
            for pixels in frames:
                if not self.source.lives:
                    due = max(due + 1 / self.source.rate, time.monotonic() - 1.0)
                    stop.wait(max(due - time.monotonic(), 0))
                if stop.is_set():
                    return
                self.fault = None
                self.frames += 1
                self._take(Frame(pixels, time.monotonic(), begins))
                begins = False
        finally:
            if hasattr(frames, "close"):
                frames.close()
