"""Batch norms for networks without any, while they learn; what is saved is the network as it was built."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


class Normalised(nn.Module):
    """A convolution with a batch norm behind it."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = nn.BatchNorm3d(convolution.out_channels)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the normalised output."""
        output: torch.Tensor = self.norm(self.convolution(input))
        return output


def insert(model: nn.Module) -> int:
    """Put a batch norm behind each 3D convolution, in place, of a network without normalisation; return how many."""
    if any(isinstance(module, _NORMS) for module in model.modules()):
        return 0
    found = [name for name, module in model.named_modules() if type(module) is nn.Conv3d]
    for name in found:
        model.set_submodule(name, Normalised(model.get_submodule(name)))  # type: ignore[arg-type]
    return len(found)


@torch.no_grad()
def keep_function(model: nn.Module, clips: torch.Tensor) -> None:
    """Set the batch norms of ``insert`` to undo, on ``clips`` [B,3,T,H,W], what they do: the network stays what it was.

    A network that has learnt something would otherwise lose where its ReLUs begin.
    """

    def adopt(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        assert isinstance(module, Normalised)
        plain: torch.Tensor = module.convolution(*inputs)
        variance, mean = torch.var_mean(plain, dim=(0, 2, 3, 4), correction=0)
        norm = module.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean)
        return plain

    hooks = [module.register_forward_hook(adopt) for module in model.modules() if isinstance(module, Normalised)]
    was_training = model.training
    model.eval()
    try:
        model(clips)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()


def folded(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode, with the batch norms of ``insert`` folded into their convolutions."""
    made = copy.deepcopy(model).eval()
    for name, module in list(made.named_modules()):
        if isinstance(module, Normalised):
            made.set_submodule(name, fuse_conv_bn_eval(module.convolution, module.norm))
    return made
