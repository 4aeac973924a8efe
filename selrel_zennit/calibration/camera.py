"""How a world that stands still looks through a camera: sensor noise, and what a codec makes of it."""

from __future__ import annotations

import io
from dataclasses import dataclass

import av
import cv2
import numpy as np
from av.video.stream import VideoStream

from ..clips.spec import Frames
from ..errors import InputError

CODECS = ("none", "jpeg", "h264")
_JPEG_QUALITY = 85
_H264_CRF = "23"


@dataclass(frozen=True)
class Camera:
    """A camera that looks at a still world.

    ``noise`` is the standard deviation of its sensor noise in grey levels of 255, drawn anew for every pixel, channel
    and frame; ``codec`` what its frames go through: none, "jpeg" (each frame alone, quality 85) or "h264" (the clip as
    a stream, CRF 23). Without both, a clip is one frame repeated.

    Raises InputError on construction for a noise below 0 or an unknown codec.
    """

    noise: float = 0.0
    codec: str = "none"

    def __post_init__(self) -> None:
        if isinstance(self.noise, bool) or not isinstance(self.noise, int | float) or not 0 <= self.noise < 256:
            raise InputError(f"noise is a standard deviation in grey levels, 0 to 255, got {self.noise!r}")
        if self.codec not in CODECS:
            raise InputError(f"no codec {self.codec!r} for still clips; there are {', '.join(CODECS)}")

    @property
    def exact(self) -> bool:
        """Say whether every frame is the same to the last bit."""
        return not self.noise and self.codec == "none"

    def film(self, frame: Frames, steps: int, seed: int | tuple[int, ...] = 0) -> Frames:
        """Return a clip uint8 [steps,H,W,3] of the still ``frame``, uint8 [H,W,3]; ``seed`` is that of the noise."""
        clip = np.repeat(frame[None], steps, axis=0)
        if self.noise:
            drawn = np.random.default_rng(seed).normal(0, self.noise, clip.shape)
            clip = np.clip(np.rint(clip + drawn), 0, 255).astype(np.uint8)
        if self.codec == "jpeg":
            return np.stack([_through_jpeg(one) for one in clip])
        return _through_h264(clip) if self.codec == "h264" else clip

    def __str__(self) -> str:
        noise = f"noise of {self.noise:g} grey levels" if self.noise else ""
        return ", ".join(part for part in (noise, "" if self.codec == "none" else self.codec) if part)


def _through_jpeg(frame: Frames) -> Frames:
    _, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    seen = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert seen is not None
    return np.ascontiguousarray(seen[..., ::-1], np.uint8)


def _through_h264(clip: Frames) -> Frames:
    height, width = clip.shape[1:3]
    even = np.pad(clip, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    data = io.BytesIO()
    with av.open(data, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": _H264_CRF})
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = even.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    data.seek(0)
    with av.open(data, "r") as coded:
        seen = [frame.to_ndarray(format="rgb24") for frame in coded.decode(video=0)]
    return np.ascontiguousarray(np.stack(seen)[:, :height, :width], np.uint8)
