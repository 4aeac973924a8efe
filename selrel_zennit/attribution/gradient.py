"""The gradient, plain or modified by a composite: Zennit's Gradient on video."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from zennit.attribution import Gradient as ZennitGradient

from .base import VideoAttributor
from .registry import register_method


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


@register_method(
    "gradient",
    summary="derivative of the target's logit with respect to the clip",
    citation="Simonyan et al. 2014, arXiv 1312.6034",
    passes=2.0,
    compilable=True,
)
def gradient(model: nn.Module) -> Gradient:
    """Return the plain gradient."""
    return Gradient(model)


@register_method(
    "gradient_x_input",
    summary="gradient times the clip in model units, the first-order share of each voxel",
    citation="Shrikumar et al. 2016, arXiv 1605.01713",
    passes=2.0,
    compilable=True,
)
def gradient_x_input(model: nn.Module) -> GradientXInput:
    """Return gradient × input."""
    return GradientXInput(model)
