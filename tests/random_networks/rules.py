"""The rules of linear layers, from the papers: a layer is z_j = Σ_i x_i w_ij + b_j, R_j goes to the x_i.

A division by z adds ε = 1e-6 to it with the sign of z (of 0: plus), as Zennit's documentation says.
Sources: Bach et al. 2015 (ε, αβ); Montavon et al. 2017 (z⁺, z^B); Montavon et al. 2019 (γ), for inputs of both signs
Andéol et al. 2021; Zhang et al. 2018 (excitation backprop, which is z⁺ without biases).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

EPSILON = 1e-6
GAMMA = 0.25

Box = tuple[torch.Tensor, torch.Tensor]


def stable(z: torch.Tensor) -> torch.Tensor:
    """Return z moved away from zero by ε."""
    return z + torch.where(z < 0, -EPSILON, EPSILON)


@dataclass
class Layer:
    """A linear layer at one place of the graph: its input, its weight, its bias or None, and what it computes.

    ``apply(x, w)`` is linear in both and knows no bias; ``bias`` broadcasts to what it gives.
    """

    input: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    apply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def back(self, weight: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """Return Σ_j w_ij s_j."""
        with torch.enable_grad():
            x = torch.zeros_like(self.input).requires_grad_()
            return torch.autograd.grad(self.apply(x, weight), x, share)[0]

    def bias_or_zero(self) -> torch.Tensor:
        """Return the bias, 0 where there is none."""
        return torch.zeros((), dtype=self.weight.dtype) if self.bias is None else self.bias


def epsilon(layer: Layer, relevance: torch.Tensor) -> torch.Tensor:
    """R_i = Σ_j x_i w_ij R_j ÷ (z_j ± ε); the bias takes its share."""
    z = layer.apply(layer.input, layer.weight) + layer.bias_or_zero()
    return layer.input * layer.back(layer.weight, relevance / stable(z))


def _shared(layer: Layer, relevance: torch.Tensor, sign: int, bias: bool) -> torch.Tensor:
    """R_i = Σ_j (x_i w_ij)^± R_j ÷ (Σ_k (x_k w_kj)^± + b_j^±): the part that pulls up (+1), or down (-1)."""
    up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
    of_positive, of_negative = (up, down) if sign > 0 else (down, up)
    positive, negative = layer.input.clamp(min=0), layer.input.clamp(max=0)
    z = layer.apply(positive, of_positive) + layer.apply(negative, of_negative)
    if bias:
        z = z + (layer.bias_or_zero() * sign).clamp(min=0) * sign
    share = relevance / stable(z)
    return positive * layer.back(of_positive, share) + negative * layer.back(of_negative, share)


def z_plus(layer: Layer, relevance: torch.Tensor, bias: bool) -> torch.Tensor:
    """α1β0: what pulls up shares; with ``bias`` a positive bias takes its share."""
    return _shared(layer, relevance, 1, bias)


def alpha2_beta1(layer: Layer, relevance: torch.Tensor) -> torch.Tensor:
    """R_i = 2 · (share among what pulls up) − (share among what pulls down); biases take their shares."""
    return 2 * _shared(layer, relevance, 1, True) - _shared(layer, relevance, -1, True)


def gamma(layer: Layer, relevance: torch.Tensor) -> torch.Tensor:
    """The γ-rule for inputs of both signs: where z > 0 what pulls up counts 1 + γ times, where z < 0 what pulls down.

    The bias counts so too, and takes its share.
    """
    z = layer.apply(layer.input, layer.weight) + layer.bias_or_zero()
    positive, negative = layer.input.clamp(min=0), layer.input.clamp(max=0)
    up, down = layer.weight.clamp(min=0) * GAMMA, layer.weight.clamp(max=0) * GAMMA
    result = torch.zeros_like(layer.input)
    for favoured, other, where, sign in ((up, down, z > 0, 1), (down, up, z < 0, -1)):
        of_positive, of_negative = layer.weight + favoured, layer.weight + other
        bias = layer.bias_or_zero()
        bias = bias + GAMMA * (bias * sign).clamp(min=0) * sign
        denominator = layer.apply(positive, of_positive) + layer.apply(negative, of_negative) + bias
        share = relevance * where / stable(denominator)
        result = result + positive * layer.back(of_positive, share) + negative * layer.back(of_negative, share)
    return result


def z_box(layer: Layer, relevance: torch.Tensor, box: Box) -> torch.Tensor:
    """z^B: R_i = Σ_j (x_i w_ij − l_i w⁺_ij − h_i w⁻_ij) R_j ÷ Σ_k (the same); the bias cancels."""
    low, high = box
    up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
    z = layer.apply(layer.input, layer.weight) - layer.apply(low, up) - layer.apply(high, down)
    share = relevance / stable(z)
    return layer.input * layer.back(layer.weight, share) - low * layer.back(up, share) - high * layer.back(down, share)
