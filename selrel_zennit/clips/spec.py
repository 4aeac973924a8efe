"""ClipSpec: how frames become a network's input, and what values that input can take. NumPy and OpenCV alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import InputError

if TYPE_CHECKING:
    import torch

Frames = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

_CHANNEL_ORDERS = ("RGB", "BGR")


@dataclass(frozen=True)
class ClipSpec:
    """What a video network takes: sampling in time, size, and scaling of pixel values. The default is C3D's.

    A clip is ``frames`` frames taken every ``stride`` frames, resized so that its short side is ``short_side`` pixels
    (a pair is an exact height and width, whatever the aspect), cropped to ``crop`` × ``crop`` in the centre, scaled
    from 0…255 to ``value_range``, less ``mean``, divided by ``std`` (per channel, in units of ``value_range``, in the
    order of ``channel_order``). Shorter videos are loop padded (Hiley et al. 2020, §4.1).

    Raises ValueError on construction when a field cannot be.
    """

    frames: int = 16
    stride: int = 1
    short_side: int | tuple[int, int] = 112
    crop: int = 112
    value_range: tuple[float, float] = (0.0, 255.0)
    mean: tuple[float, float, float] = (102.0, 98.0, 90.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    interpolation: str = "linear"
    channel_order: str = "RGB"

    def __post_init__(self) -> None:
        for name, least in (("frames", 2), ("stride", 1), ("crop", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        size = self.short_side if isinstance(self.short_side, tuple | list) else (self.short_side,)
        if len(size) not in (1, 2) or not all(isinstance(side, int) and side >= 1 for side in size):
            raise ValueError(f"short_side must be pixels, or a pair (height, width), got {self.short_side!r}")
        if len(size) == 2:
            object.__setattr__(self, "short_side", tuple(size))
        if min(size) < self.crop:
            raise ValueError(f"crop {self.crop} does not fit into short_side {self.short_side!r}")
        for name, length in (("value_range", 2), ("mean", 3), ("std", 3)):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != length or not np.isfinite(values).all():
                raise ValueError(f"{name} must be {length} finite numbers, got {getattr(self, name)!r}")
            object.__setattr__(self, name, values)
        if not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range must rise, got {self.value_range!r}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std!r}")
        if self.interpolation not in _interpolations():
            raise ValueError(f"interpolation must be one of {sorted(_interpolations())}, got {self.interpolation!r}")
        if self.channel_order not in _CHANNEL_ORDERS:
            raise ValueError(f"channel_order must be one of {_CHANNEL_ORDERS}, got {self.channel_order!r}")

    @property
    def span(self) -> int:
        """Frames of video from the first to the last frame of a clip."""
        return (self.frames - 1) * self.stride + 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of one clip, [C,T,H,W]."""
        return (3, self.frames, self.crop, self.crop)

    def indices(self, available: int, start: int = 0) -> npt.NDArray[np.int64]:
        """Return the T frame indices of the clip at ``start`` out of ``available`` frames, looped past the last.

        Raises InputError where ``start`` lies outside the video.
        """
        if available < 1:
            raise InputError("a clip needs at least one frame, got none")
        if not 0 <= start < available:
            raise InputError(f"start must lie in 0…{available - 1} ({available} frames), got {start}")
        steps = np.arange(self.frames, dtype=np.int64) * self.stride
        return start + steps % (available - start)

    def is_padded(self, available: int, start: int = 0) -> bool:
        """Say whether the clip at ``start`` out of ``available`` frames is loop padded."""
        return available - start < self.span

    def starts(self, available: int) -> list[int]:
        """Return the starts of a video's successive clips: every ``span`` frames, whole clips only, at least one."""
        return list(range(0, max(available - self.span + 1, 1), self.span))

    def pixels(self, frames: Frames, start: int = 0) -> Frames:
        """Return what the network sees as pictures: [N,H,W,3] RGB → uint8 [T,crop,crop,3] RGB, sampled and cropped.

        Raises InputError for frames of another shape or type, or a start outside them.
        """
        if not isinstance(frames, np.ndarray) or frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            shape, dtype = getattr(frames, "shape", None), getattr(frames, "dtype", type(frames).__name__)
            raise InputError(f"frames must be uint8 [N,H,W,3], got {dtype} {shape}")
        chosen = self.indices(len(frames), start)
        resized = {int(index): self._cropped(frames[index]) for index in np.unique(chosen)}
        return np.stack([resized[int(index)] for index in chosen])

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that frames of this size are resized to before the crop."""
        if isinstance(self.short_side, tuple):
            return self.short_side
        scale = self.short_side / min(height, width)
        return max(round(height * scale), self.crop), max(round(width * scale), self.crop)

    def resize(self, frame: Frames) -> Frames:
        """Return a frame, uint8 [H,W,3], in the size that the crop is taken out of."""
        size = self.resized(*frame.shape[:2])
        if size == frame.shape[:2]:
            return frame
        return cv2.resize(frame, size[::-1], interpolation=_interpolations()[self.interpolation])  # type: ignore[return-value]

    def _cropped(self, frame: Frames) -> Frames:
        frame = self.resize(frame)
        top, left = (frame.shape[0] - self.crop) // 2, (frame.shape[1] - self.crop) // 2
        return np.ascontiguousarray(frame[top : top + self.crop, left : left + self.crop])

    def describe_resize(self) -> str:
        """Return what happens to a frame's size, in words."""
        exact = isinstance(self.short_side, tuple)
        size = f"{self.short_side[0]}×{self.short_side[1]}" if exact else f"a short side of {self.short_side}"  # type: ignore[index]
        return f"resized to {size}, cropped to {self.crop}×{self.crop} in the centre"

    def array(self, frames: Frames, start: int = 0) -> FloatArray:
        """Return the network's input without torch: uint8 [N,H,W,3] RGB → float32 [1,3,T,H,W] in model units."""
        return self.from_pixels(self.pixels(frames, start)[None])

    def clip(self, frames: Frames, start: int = 0) -> torch.Tensor:
        """Return the network's input: uint8 [N,H,W,3] RGB → float32 tensor [1,3,T,H,W] in model units."""
        import torch

        return torch.from_numpy(self.array(frames, start))

    def from_pixels(self, pixels: Frames) -> FloatArray:
        """Scale pictures to model units: uint8 [B,T,H,W,3] RGB → float32 [B,3,T,H,W]."""
        low, high = self.value_range
        ordered = pixels[..., ::-1] if self.channel_order == "BGR" else pixels
        scaled: FloatArray = ordered.astype(np.float32) * np.float32((high - low) / 255.0) + np.float32(low)
        values = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(0, 4, 1, 2, 3))

    def to_pixels(self, clip: Any) -> Frames:
        """Turn clips back into pictures: [B,3,T,H,W] in model units → uint8 [B,T,H,W,3] RGB, rounded and clipped."""
        values = np.asarray(clip.detach().cpu() if hasattr(clip, "detach") else clip, np.float32)
        if values.ndim != 5 or values.shape[1] != 3:
            raise ValueError(f"a clip must be [B,3,T,H,W], got {values.shape}")
        low, high = self.value_range
        values = values.transpose(0, 2, 3, 4, 1) * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)
        pixels = np.clip(np.rint((values - low) * (255.0 / (high - low))), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(pixels[..., ::-1] if self.channel_order == "BGR" else pixels)

    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """Return the least and greatest input per channel in model units, each [1,3,1,1,1]: the box of z^B."""
        mean, std = (np.asarray(values, np.float64) for values in (self.mean, self.std))
        low, high = (((end - mean) / std).astype(np.float32).reshape(1, 3, 1, 1, 1) for end in self.value_range)
        return low, high

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClipSpec:
        """Read what ``to_dict`` wrote. Raises ValueError on a field that is not one of ClipSpec's."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"not a field of ClipSpec: {', '.join(sorted(unknown))}")
        settings: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**settings)


def _interpolations() -> dict[str, int]:
    return {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA, "cubic": cv2.INTER_CUBIC}
