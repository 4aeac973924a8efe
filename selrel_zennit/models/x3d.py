"""X3D-S (Feichtenhofer 2020) in the layout of PyTorchVideo's public files, every operation a module."""

from __future__ import annotations

import torch
from torch import nn

from ..canonizers.gates import Gate
from ..clips.spec import ClipSpec
from .initialise import kaiming
from .registry import register_model
from .torchvision_video import KINETICS_CLASSES, kinetics_names

SPEC = ClipSpec(
    frames=13,
    stride=6,
    short_side=182,
    crop=160,
    value_range=(0.0, 1.0),
    mean=(0.45, 0.45, 0.45),
    std=(0.225, 0.225, 0.225),
)
# of each stage: blocks, channels, channels inside a block, channels of the squeezed gate
_STAGES = ((3, 24, 54, 8), (5, 48, 108, 8), (11, 96, 216, 16), (7, 192, 432, 32))
_STEM, _FEATURES = 24, 2048


class SqueezeExcitation(nn.Module):
    """A factor in 0…1 for each channel, made of the channels' means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.block = nn.Sequential(
            nn.Conv3d(channels, squeezed, 1), nn.ReLU(), nn.Conv3d(squeezed, channels, 1), nn.Sigmoid()
        )
        self.gate = Gate()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return [B,C,T,H,W]."""
        gated: torch.Tensor = self.gate(input, self.block(self.pool(input)))
        return gated


class Branch(nn.Sequential):
    """1×1×1, 3×3×3 of each channel alone, 1×1×1."""

    def __init__(self, inputs: int, outputs: int, inner: int, stride: int, squeezed: int | None) -> None:
        super().__init__()
        self.conv_a = nn.Conv3d(inputs, inner, 1, bias=False)
        self.norm_a = nn.BatchNorm3d(inner)
        self.act_a = nn.ReLU()
        self.conv_b = nn.Conv3d(inner, inner, 3, (1, stride, stride), padding=1, groups=inner, bias=False)
        self.norm_b = nn.Sequential(
            nn.BatchNorm3d(inner), nn.Identity() if squeezed is None else SqueezeExcitation(inner, squeezed)
        )
        self.act_b = nn.SiLU()
        self.conv_c = nn.Conv3d(inner, outputs, 1, bias=False)
        self.norm_c = nn.BatchNorm3d(outputs)


class Block(nn.Module):
    """A branch and what goes around it: a batch norm there only where the channels change, as in the public files."""

    def __init__(self, inputs: int, outputs: int, inner: int, stride: int, squeezed: int | None) -> None:
        super().__init__()
        self.branch1_conv: nn.Module = nn.Identity()
        self.branch1_norm: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.branch1_conv = nn.Conv3d(inputs, outputs, 1, (1, stride, stride), bias=False)
        if inputs != outputs:
            self.branch1_norm = nn.BatchNorm3d(outputs)
        self.branch2 = Branch(inputs, outputs, inner, stride, squeezed)
        self.activation = nn.ReLU()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return [B,C,T,H,W]."""
        output: torch.Tensor = self.activation(self.branch1_norm(self.branch1_conv(input)) + self.branch2(input))
        return output


class Stem(nn.Module):
    """A convolution in space, then one in time. The public files have their names the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        self.conv.add_module("conv_t", nn.Conv3d(3, _STEM, (1, 3, 3), (1, 2, 2), padding=(0, 1, 1), bias=False))
        self.conv.add_module("conv_xy", nn.Conv3d(_STEM, _STEM, (5, 1, 1), padding=(2, 0, 0), groups=_STEM, bias=False))
        self.norm = nn.BatchNorm3d(_STEM)
        self.activation = nn.ReLU()

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Return [B,C,T,H,W]."""
        output: torch.Tensor = self.activation(self.norm(self.conv(clip)))
        return output


class Stage(nn.Module):
    """Blocks one after the other: the first halves the picture, every second one has a gate."""

    def __init__(self, inputs: int, blocks: int, outputs: int, inner: int, squeezed: int) -> None:
        super().__init__()
        self.res_blocks = nn.Sequential()
        for index in range(blocks):
            self.res_blocks.append(
                Block(
                    inputs if index == 0 else outputs,
                    outputs,
                    inner,
                    2 if index == 0 else 1,
                    None if index % 2 else squeezed,
                )
            )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return [B,C,T,H,W]."""
        output: torch.Tensor = self.res_blocks(input)
        return output


class Head(nn.Module):
    """The mean over time and space, between two 1×1×1 convolutions, and the class layer."""

    def __init__(self, inputs: int, inner: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.pool = nn.Sequential()
        self.pool.add_module("pre_conv", nn.Conv3d(inputs, inner, 1, bias=False))
        self.pool.add_module("pre_norm", nn.BatchNorm3d(inner))
        self.pool.add_module("pre_act", nn.ReLU())
        self.pool.add_module("pool", nn.AdaptiveAvgPool3d(1))
        self.pool.add_module("post_conv", nn.Conv3d(inner, _FEATURES, 1, bias=False))
        self.pool.add_module("post_act", nn.ReLU())
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(_FEATURES, num_classes)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return logits [B,K]."""
        logits: torch.Tensor = self.proj(self.dropout(self.flatten(self.pool(input))))
        return logits


class X3DS(nn.Module):
    """X3D-S: [B,3,T,H,W] in model units → logits [B,K], the mean over the last layer's positions taken before the head.

    Modules and keys are those of PyTorchVideo's X3D_S.pyth. That file's network ends in a softmax, which is left out
    here. Its gates (squeeze-and-excitation) are Gate modules, its swish is nn.SiLU: under rules both hand their
    relevance to the signal alone. ``lrp_alpha2_beta1`` does not conserve relevance here: it wants contributions of both
    signs in every unit, which convolutions of a single channel often lack.

    Source: Feichtenhofer 2020, arXiv 2004.04730.
    """

    cam_layer = "blocks.4"

    def __init__(self, num_classes: int = KINETICS_CLASSES, spec: ClipSpec | None = None, dropout: float = 0.5) -> None:
        super().__init__()
        self.spec = spec or SPEC
        self.num_classes = num_classes
        self.class_names = kinetics_names(num_classes)
        self.blocks = nn.Sequential(Stem())
        channels, inner = _STEM, 0
        for count, outputs, inner, squeezed in _STAGES:
            self.blocks.append(Stage(channels, count, outputs, inner, squeezed))
            channels = outputs
        self.blocks.append(Head(channels, inner, num_classes, dropout))

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Return logits [B,K]."""
        logits: torch.Tensor = self.blocks(clip)
        return logits


@register_model(
    "x3d_s",
    summary="X3D-S: convolutions of each channel alone, with gates; 13 frames of 160×160",
    citation="Feichtenhofer 2020, arXiv 2004.04730; keys of PyTorchVideo's X3D_S.pyth",
    classes=KINETICS_CLASSES,
    head="blocks.5.proj.weight",
    reset=kaiming,
)
def x3d_s(num_classes: int = KINETICS_CLASSES, spec: ClipSpec | None = None) -> X3DS:
    """Return the network of the public file."""
    return X3DS(num_classes, spec)
