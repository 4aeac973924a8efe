"""Excitation backprop, plain (MWP) and contrastive (cMWP), down to the clip or to a layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import interpolate

from ...canonizers.batch_norm import VideoCanonizer
from ...composites import ContrastiveExcitationBackprop
from ...network.paths import named_layer
from ..layers import find_layer, run_watching, start_graph
from .gradient import Gradient


class ExcitationBackprop(Gradient):
    """Excitation backprop: p_j = x_j Σ_i w⁺_ij p_i ÷ Σ_k w⁺_ik x_k, biases dropped, max pools to the winner.

    The formula wants x ≥ 0, which the clip, centred on the channel means, is not. In the first convolution a negative
    input counts with its negative weights: all positive products x_j w_ij excite. That is the formula itself on the
    clip split into x⁺ with the weights w and −x⁻ with −w; it keeps p ≥ 0 and the sum. So p sums to 1, but for what
    reaches units that are active by their bias alone: they have no positive product to hand it to.

    With ``contrastive``, the map of the negated class weights is subtracted at the input of the class layer ``head``
    (default: what gives the logits), as in the paper; the result is summed over channels and clamped at 0.

    ``layer`` stops at the output of that module, [B,C,T,H,W], as the paper does. The channel sum, 1 in all at the
    layer, is upsampled to the clip (trilinear, ``align_corners=False``); no graph is made below the layer. A map with
    one channel is returned as map/3 on each of the three.

    Raises InputError for a ``layer`` that does not exist; when called, for one that gives another shape or does not
    run exactly once, and for a ``head`` that does not give the logits.

    Source: Zhang et al. 2018, arXiv 1608.00507.
    """

    def __init__(
        self, model: nn.Module, contrastive: bool = False, layer: str | None = None, head: str | None = None
    ) -> None:
        super().__init__(model, ContrastiveExcitationBackprop(contrastive, head, canonizers=[VideoCanonizer()]))
        self.contrastive = contrastive
        if contrastive:
            named_layer(model, head)
        self.layer_name = layer
        if layer is not None:
            find_layer(model, layer)  # raises now where there is none

    def forward(
        self, input: torch.Tensor, attr_output_fn: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B,K], relevance [B,3,T,H,W])."""
        if self.layer_name is None:
            output, relevance = super().forward(input, attr_output_fn)
            if not self.contrastive:
                return output, relevance
        else:
            with torch.no_grad():
                output, leaf = run_watching(self.model, input, self.layer_name, start_graph)
                (relevance,) = torch.autograd.grad((output,), (leaf,), grad_outputs=(attr_output_fn(output),))
        relevance = relevance.sum(1, keepdim=True)
        if self.contrastive:
            relevance = relevance.clamp(min=0)
        if self.layer_name is not None:
            relevance = interpolate(relevance, size=input.shape[2:], mode="trilinear", align_corners=False)
        return output, (relevance / 3).expand_as(input).contiguous()


def excitation_backprop(
    model: nn.Module, contrastive: bool = False, layer: str | None = None, head: str | None = None
) -> ExcitationBackprop:
    """Return excitation backprop; see ExcitationBackprop for the options and errors."""
    return ExcitationBackprop(model, contrastive, layer, head)
