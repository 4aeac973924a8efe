"""Random relevance: the control that every table of figures needs."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import nn

from ..base import AttrOutput, VideoAttributor
from ..options import choice, whole


class RandomRelevance(VideoAttributor):
    """Relevance drawn at random, one value a voxel: what a figure is worth without any explanation.

    ``distribution`` is "normal" (mean 0, σ 1) or "uniform" (0…1). The draw depends on ``seed``, the clip and the
    initial relevance: the same call gives the same map, another clip or target another one. Returned as a third on
    each channel. Raises InputError for another distribution or seed.
    """

    records = False

    def __init__(
        self, model: nn.Module, seed: int = 0, distribution: str = "normal", attr_output: AttrOutput = None
    ) -> None:
        super().__init__(model, attr_output=attr_output)
        self.seed = whole("seed", seed, least=0)
        self.distribution = choice("distribution", distribution, ("normal", "uniform"))

    def forward(
        self, input: torch.Tensor, attr_output_fn: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B,K], random relevance / 3 on each channel [B,3,T,H,W])."""
        with torch.no_grad():
            output = self.model(input)
            initial = attr_output_fn(output)
        draw = torch.randn if self.distribution == "normal" else torch.rand
        maps = [
            draw((1, *clip.shape[1:]), generator=torch.Generator().manual_seed(self._seed(clip, target)))
            for clip, target in zip(input, initial, strict=True)
        ]
        return output, (torch.stack(maps).to(input) / 3).expand_as(input).contiguous()

    def _seed(self, clip: torch.Tensor, target: torch.Tensor) -> int:
        state = zlib.crc32(str(self.seed).encode())
        for values in (clip, target):
            state = zlib.crc32(values.detach().cpu().double().numpy().tobytes(), state)
        return state


def random(model: nn.Module, seed: int = 0, distribution: str = "normal") -> RandomRelevance:
    """Return random relevance; see the class for the options."""
    return RandomRelevance(model, seed, distribution)
