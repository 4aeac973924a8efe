"""The convolutional networks of the pack, made small: an eighth of the channels, no block twice, tiny clips.

Every kernel, stride, padding, pool, join and shortcut is the network's own.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import nn

import selrel_zennit as sr

CLASSES = 5
# Blocks that do what their predecessor does, at the same channels.
_REPEATED = {
    "s3d": r"features\.(9|10|14)",
    "i3d": "Mixed_(4c|4d|5b)",
    "x3d_s": r"blocks\.[1-4]\.res_blocks\.[1-9]\d*",
}
# Their channels are counted where they are gated, shifted and unrolled: they keep all of them.
_WHOLE = ("x3d_s", "tsm_resnet50", "resnet50_lstm")
# Sides along which "same" padding is what it is at 193 pixels, the least that I3D is built for.
_INCEPTION = sr.ClipSpec(9, short_side=33, crop=33, value_range=(-1.0, 1.0), mean=(0.0, 0.0, 0.0))
_RESIDUAL = sr.ClipSpec(
    8, short_side=32, crop=32, value_range=(0.0, 1.0), mean=(0.43, 0.4, 0.38), std=(0.23, 0.22, 0.2)
)
_FEW_FRAMES = replace(_RESIDUAL, frames=4)


def small_network(name: str, seed: int = 0) -> nn.Module:
    """Return a network of the pack made small, its batch norms as after training, in eval mode."""
    inception = name in ("s3d", "i3d")
    spec = _INCEPTION if inception else _FEW_FRAMES if name in _WHOLE else _RESIDUAL
    built = sr.ClipSpec(9, short_side=193, crop=193) if inception else spec
    model = sr.load_model(name, weights="random", num_classes=CLASSES, spec=built, seed=seed)
    model.spec = spec
    for path in [
        path
        for path, _ in model.named_modules()
        if re.fullmatch(_REPEATED.get(name, r"layer1\.[2-9]|layer[234]\.[1-9]"), path)
    ]:
        model.set_submodule(path, nn.Identity())
    for pool in ("avg_pool", "avgpool"):
        if inception and hasattr(model, pool):
            # Theirs is 7×7 wide.
            setattr(model, pool, nn.AdaptiveAvgPool3d(1))
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if name not in _WHOLE:
            _narrow(module)
        if isinstance(module, nn.BatchNorm3d):
            _trained(module, generator)
        elif isinstance(module, nn.LSTM):
            # Features are large, and with weights of that size every gate would be open or shut.
            module.weight_ih_l0.data /= 50
    return model.eval().requires_grad_(False)


def _narrow(module: nn.Module) -> None:
    """Leave an eighth of the channels, but for colours and classes."""
    if isinstance(module, nn.Conv3d):
        module.out_channels = _eighth(module.out_channels)
        module.in_channels = _eighth(module.in_channels)
        # Of fewer inputs, greater weights.
        weight = module.weight[: module.out_channels, : module.in_channels] * (3 if module.in_channels > 3 else 1)
        module.weight = nn.Parameter(weight.clone())
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias[: module.out_channels].clone())
    elif isinstance(module, nn.Linear):
        module.in_features = _eighth(module.in_features)
        module.weight = nn.Parameter(module.weight[:, : module.in_features].clone())
    elif isinstance(module, nn.BatchNorm3d):
        module.num_features = _eighth(module.num_features)
    elif type(module).__name__ == "ZeroChannels":
        module.outputs = _eighth(int(module.outputs))  # type: ignore[call-overload]


def _trained(norm: nn.BatchNorm3d, generator: torch.Generator) -> None:
    """Give a batch norm statistics and a scale as after training."""
    for name, low, high in (("running_mean", -0.2, 0.2), ("running_var", 0.5, 1.5)):
        setattr(norm, name, torch.empty(norm.num_features).uniform_(low, high, generator=generator))
    for name, low, high in (("weight", 0.5, 1.5), ("bias", -0.2, 0.2)):
        values = torch.empty(norm.num_features).uniform_(low, high, generator=generator)
        setattr(norm, name, nn.Parameter(values))


def _eighth(channels: int) -> int:
    return channels if channels in (3, CLASSES) else -(-channels // 8)
