"""Weights drawn anew, for networks that are to be explained untrained: activations keep their size in every layer."""

from __future__ import annotations

import math

import torch
from torch import nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def kaiming(model: nn.Module, seed: int) -> None:
    """Draw convolutions and linear layers (Kaiming, ReLU gain, zero biases) in place; norms become those of a start.

    Parameters that belong to no such layer, such as position biases of transformers, are drawn from N(0, 0.02²).
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm):
            module.reset_parameters()
        elif isinstance(module, nn.LSTM):
            for parameter in module.parameters(recurse=False):
                parameter.uniform_(
                    -1 / math.sqrt(module.hidden_size), 1 / math.sqrt(module.hidden_size), generator=generator
                )
        else:
            for parameter in module.parameters(recurse=False):
                parameter.normal_(0, 0.02, generator=generator)
