"""The gradient, plain or modified by a composite: Zennit's Gradient on video."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from zennit.attribution import Gradient as ZennitGradient

from ..base import VideoAttributor


class Gradient(VideoAttributor, ZennitGradient):
    """Zennit's Gradient attributor with VideoAttributor's guarantees; with a composite, that composite's relevance."""


class GradientXInput(Gradient):
    """The gradient times the clip in model units: what a linear network would add to the logit, voxel by voxel."""

    def forward(
        self, input: torch.Tensor, attr_output_fn: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B,K], attribution [B,3,T,H,W])."""
        output, gradient = super().forward(input, attr_output_fn)
        return output, gradient * input


def gradient(model: nn.Module) -> Gradient:
    """Return the plain gradient."""
    return Gradient(model)


def gradient_x_input(model: nn.Module) -> GradientXInput:
    """Return gradient × input."""
    return GradientXInput(model)
