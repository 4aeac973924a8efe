"""Occlusion: what the target's logit loses when a window of space and time is covered."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice, product
from typing import Any

import torch
from torch import nn

from ...errors import InputError
from ..base import AttrOutput, VideoAttributor
from ..options import Reference, ReferenceInput, whole


class Occlusion(VideoAttributor):
    """f(x) − f(x with a window covered), f the target's logit, for windows (T,H,W) over the clip.

    All three channels are covered at once. Where windows overlap, a voxel gets the mean over the windows that cover
    it; the last window of an axis is cut off at the border, both as in Captum. The map is returned as a third on each
    channel, so that the channel sum is the drop of the logit. Zennit's own Occlusion is another method: it covers
    everything but the window, and sums scores.

    ``window`` and ``stride`` are (steps, rows, columns), ``stride`` the window by default (no overlap); ``fill`` is
    what covers: "mean" (zero in model units), "black", or a tensor, see ReferenceInput. ``batch`` windows run at a
    time, without a graph. Cost: one forward pass a window.

    Raises InputError for a window larger than the clip, a stride that leaves gaps, or a fill that does not fit.

    Source: Zeiler and Fergus 2014, arXiv 1311.2901, §4.2.
    """

    records = False

    def __init__(
        self,
        model: nn.Module,
        window: Sequence[int] = (4, 16, 16),
        stride: Sequence[int] | None = None,
        fill: Reference = "mean",
        batch: int = 4,
        attr_output: AttrOutput = None,
    ) -> None:
        super().__init__(model, attr_output=attr_output)
        self.window = _three("window", window)
        self.stride = self.window if stride is None else _three("stride", stride)
        self.fill = ReferenceInput("fill", fill, model)
        self.batch = whole("batch", batch)

    def forward(
        self, input: torch.Tensor, attr_output_fn: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B,K], drop of the logit / 3 on each channel [B,3,T,H,W])."""
        steps, rows, columns = map(_slices, input.shape[2:], self.window, self.stride)
        windows = product(steps, rows, columns)
        fill = self.fill.like(input)
        with torch.no_grad():
            output = self.model(input)
            initial = attr_output_fn(output)
            drop = torch.zeros_like(input[:, 0])
            covers = torch.zeros_like(input[0, 0])
            while chunk := list(islice(windows, self.batch)):
                covered = input.repeat(len(chunk), 1, 1, 1, 1)
                for clips, (t, h, w) in zip(covered.chunk(len(chunk)), chunk, strict=True):
                    clips[:, :, t, h, w] = fill[:, :, t, h, w]
                scores = self.model(covered).chunk(len(chunk))
                for logits, (t, h, w) in zip(scores, chunk, strict=True):
                    drop[:, t, h, w] += ((output - logits) * initial).sum(1)[:, None, None, None]
                    covers[t, h, w] += 1
        return output, (drop / covers / 3)[:, None].expand_as(input).contiguous()


def _three(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) != 3:
        raise InputError(f"{name} must be three whole numbers (steps, rows, columns), got {value!r}")
    return tuple(whole(name, length) for length in value)


def _slices(size: int, window: int, stride: int) -> list[slice]:
    if window > size:
        raise InputError(f"a window of {window} does not fit into a clip of {size}: window is (steps, rows, columns)")
    if window < size and stride > window:
        raise InputError(f"a stride of {stride} leaves gaps between windows of {window}: make it at most the window")
    count = math.ceil((size - window) / stride) + 1
    return [slice(start, start + window) for start in range(0, count * stride, stride)]


def occlusion(
    model: nn.Module,
    window: Sequence[int] = (4, 16, 16),
    stride: Sequence[int] | None = None,
    fill: Reference = "mean",
    batch: int = 4,
) -> Occlusion:
    """Return occlusion; see the class for the options. The cost is one forward pass a window."""
    return Occlusion(model, window, stride, fill, batch)
