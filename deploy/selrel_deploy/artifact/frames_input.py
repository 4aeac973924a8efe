"""Frames as they come, uint8 [B,T,H,W,3] RGB, to a network's input, in operations that a graph can hold.

What ClipSpec does with NumPy and OpenCV, to the bit: OpenCV resizes uint8 in whole numbers and cuts off fractions on
the way. All values here are whole or 256ths, and small enough for float32 to hold them exactly.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from selrel_zennit.clips.spec import ClipSpec
from selrel_zennit.errors import InputError

Tensor = torch.Tensor

# OpenCV's weights of two neighbouring pixels are whole and sum to this.
_ONE = 2048


class FramesToClip(nn.Module):
    """Resize to the short side, crop in the centre, scale, order the channels, and put time where networks want it.

    ``frame_size`` is (height, width) of the frames. Called with uint8 [B,T,H,W,3] RGB it returns float32 [B,3,T,h,w].
    Raises InputError on construction for an interpolation other than linear, where the size changes.
    """

    def __init__(self, spec: ClipSpec, frame_size: tuple[int, int]) -> None:
        super().__init__()
        self.spec, self.frame_size = spec, frame_size
        resized = spec.resized(*frame_size)
        self.resizes = resized != tuple(frame_size)
        if self.resizes and spec.interpolation != "linear":
            raise InputError(
                f"the graph can resize linearly alone, the model's frames are resized by {spec.interpolation}: "
                "resize them first, and export with --frame-size "
                f"{resized[0]}x{resized[1]}"
            )
        for axis, (size, length) in enumerate(zip(frame_size, resized, strict=True)):
            start = (length - spec.crop) // 2
            places, weights = _linear(size, length, ends_alone=axis == 1)
            for side in range(2):
                self.register_buffer(f"places_{axis}_{side}", places[side, start : start + spec.crop])
                self.register_buffer(f"weights_{axis}_{side}", weights[side, start : start + spec.crop])

    def forward(self, frames: Tensor) -> Tensor:
        """Return the clips."""
        # TensorRT takes uint8 as an input alone, and only to turn it into floats.
        pixels = self._resize(frames.float()) if self.resizes else self._crop(frames.float())
        if self.spec.channel_order == "BGR":
            pixels = pixels.index_select(4, torch.tensor([2, 1, 0]))
        low, high = self.spec.value_range
        if (low, high) != (0.0, 255.0):
            pixels = pixels * float(np.float32((high - low) / 255.0)) + float(np.float32(low))
        pixels = pixels - torch.tensor(self.spec.mean, dtype=torch.float32)
        if any(value != 1.0 for value in self.spec.std):
            pixels = pixels / torch.tensor(self.spec.std, dtype=torch.float32)
        return pixels.permute(0, 4, 1, 2, 3).contiguous()

    def _crop(self, pixels: Tensor) -> Tensor:
        for axis, size in enumerate(pixels.shape[2:4]):
            pixels = pixels.narrow(axis + 2, (size - self.spec.crop) // 2, self.spec.crop)
        return pixels

    def _resize(self, pixels: Tensor) -> Tensor:
        total: Tensor | None = None
        for side in range(2):
            rows = pixels.index_select(2, self._constant("places", 0, side))
            left, right = (
                rows.index_select(3, self._constant("places", 1, other))
                * self._constant("weights", 1, other).reshape(-1, 1)
                for other in range(2)
            )
            # ⌊(left + right) ÷ 16⌋, of which the weighted 65536th is taken, in two steps of 256: no product rounds.
            row = torch.floor((left + right) / 16)
            upper = torch.floor(row / 256)
            weight = self._constant("weights", 0, side).reshape(-1, 1, 1)
            part = torch.floor((weight * upper + torch.floor(weight * (row - 256 * upper) / 256)) / 256)
            total = part if total is None else total + part
        assert total is not None
        return torch.floor((total + 2) / 4).clamp(0, 255)

    def _constant(self, name: str, axis: int, side: int) -> Tensor:
        value = getattr(self, f"{name}_{axis}_{side}")
        assert isinstance(value, Tensor)
        return value


def _linear(size: int, length: int, ends_alone: bool) -> tuple[Tensor, Tensor]:
    """Return the two neighbours of every output, int64 [2,length], and their weights, float32 [2,length].

    As in OpenCV's ``resize``: pixel centres, positions in float32, weights in 2048ths. Outside, the outermost pixel
    stands in for its neighbour: along the width with the whole weight (``ends_alone``), along the height twice.
    """
    position = ((np.arange(length) + 0.5) * (1.0 / (length / size)) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    share = position - first.astype(np.float32)
    if ends_alone:
        share[(first < 0) | (first >= size - 1)] = 0
    weights = np.rint(np.stack([1 - share, share]) * np.float32(_ONE))
    places = np.clip(np.stack([first, first + 1]), 0, size - 1)
    return torch.from_numpy(places), torch.from_numpy(weights.astype(np.float32))
