"""What networks that are written down once more have in common: merged batch norms, and branches that are added."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from zennit.layer import Sum


def merged(convolution: Any, norm: Any) -> nn.Module:
    """Return the convolution with the batch norm behind it inside."""
    made = copy.deepcopy(convolution)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = torch.zeros_like(norm.bias) if made.bias is None else made.bias
    by_output = scale.reshape(-1, *[1] * (made.weight.ndim - 1))
    made.weight = nn.Parameter(made.weight * by_output, requires_grad=False)
    made.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias, requires_grad=False)
    return made


class Residual(nn.Module):
    """A residual block: layers, a shortcut, their sum."""

    def __init__(self, layers: list[nn.Module], shortcut: nn.Module) -> None:
        super().__init__()
        self.layers, self.shortcut, self.sum, self.relu = nn.Sequential(*layers), shortcut, Sum(), nn.ReLU()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return relu(shortcut + layers)."""
        return self.relu(self.sum(torch.stack([self.shortcut(values), self.layers(values)], -1)))
