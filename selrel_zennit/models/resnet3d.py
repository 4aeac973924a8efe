"""3D ResNets in the layout of the public Kinetics files (Hara et al. 2018), residual sums as modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from zennit.layer import Sum

from ..clips.spec import ClipSpec
from .initialise import kaiming
from .registry import register_model
from .torchvision_video import KINETICS_CLASSES, kinetics_names

# Of the files of 2020, for 700 classes and more, and of what is fine-tuned from them.
SPEC = ClipSpec(
    frames=16,
    short_side=112,
    crop=112,
    value_range=(0.0, 1.0),
    mean=(0.4345, 0.4051, 0.3775),
    std=(0.2768, 0.2713, 0.2737),
)
# Of the files of 2017, for the 400 classes of Kinetics-400: the means of ActivityNet, no division.
SPEC_2017 = ClipSpec(frames=16, short_side=112, crop=112, value_range=(0.0, 255.0), mean=(114.7748, 107.7354, 99.4750))


class ZeroChannels(nn.Module):
    """The input strided in T, H and W, with channels of zeros behind: a shortcut without weights ("type A")."""

    def __init__(self, outputs: int, stride: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.pick = nn.AvgPool3d(1, stride)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return [B,outputs,T,H,W]."""
        return functional.pad(self.pick(input), (0, 0, 0, 0, 0, 0, 0, self.outputs - input.shape[1]))


class Block(nn.Module):
    """Two 3×3×3 convolutions or, as a bottleneck, 1, 3 and 1 wide, and what goes around them."""

    def __init__(self, inputs: int, planes: int, stride: int, bottleneck: bool, zero_shortcut: bool) -> None:
        super().__init__()
        outputs = planes * (4 if bottleneck else 1)
        plan = (
            ((inputs, planes, 1, 1), (planes, planes, 3, stride), (planes, outputs, 1, 1))
            if bottleneck
            else ((inputs, planes, 3, stride), (planes, planes, 3, 1))
        )
        for number, (before, behind, kernel, step) in enumerate(plan, 1):
            convolution = nn.Conv3d(before, behind, kernel, step, padding=kernel // 2, bias=False)
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", nn.BatchNorm3d(behind))
        self.steps = len(plan)
        # One module for each: a rule looks at the last call of a module.
        self.relus = nn.ModuleList(nn.ReLU() for _ in plan)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = (
                ZeroChannels(outputs, stride)
                if zero_shortcut
                else nn.Sequential(nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm3d(outputs))
            )
        self.sum = Sum()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return [B,C,T,H,W]."""
        output = input
        for number in range(1, self.steps + 1):
            output = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(output))
            if number < self.steps:
                output = self.relus[number - 1](output)
        around = input if self.downsample is None else self.downsample(input)
        summed: torch.Tensor = self.relus[-1](self.sum(torch.stack([around, output], dim=-1)))
        return summed


class ResNet3D(nn.Module):
    """A 3D ResNet: [B,3,T,H,W] in model units → logits [B,K].

    ``blocks`` is their number in each of the four layers. Modules and keys are those of the public files: kenshohara's
    3D-ResNets-PyTorch, with a first convolution of stride 1 in time. Its files of 2017 (``resnet-18-kinetics.pth`` and
    its like, 400 classes; of 18 and 34 layers with shortcuts without weights, ``zero_shortcut``) were trained on pixels
    less a mean, those of 2020 (``r3d18_K_200ep.pth``, 700 classes) on values from 0 to 1: ``spec`` follows from that.
    Class names are those of Kinetics-400; other files have none here.

    Source: Hara et al. 2018, arXiv 1711.09577; means and scales from the repository's own settings of either time.
    """

    cam_layer = "layer4"

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        bottleneck: bool = False,
        zero_shortcut: bool = False,
        num_classes: int = KINETICS_CLASSES,
        spec: ClipSpec | None = None,
    ) -> None:
        super().__init__()
        of_2017 = zero_shortcut or num_classes == KINETICS_CLASSES
        self.spec = spec or (SPEC_2017 if of_2017 else SPEC)
        self.num_classes = num_classes
        self.class_names = kinetics_names(num_classes)
        self.conv1 = nn.Conv3d(3, 64, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        channels = 64
        for number, (count, planes) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), 1):
            layer = nn.Sequential()
            for index in range(count):
                stride = 2 if number > 1 and index == 0 else 1
                layer.append(Block(channels, planes, stride, bottleneck, zero_shortcut))
                channels = planes * (4 if bottleneck else 1)
            self.add_module(f"layer{number}", layer)
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Return logits [B,K]."""
        values = self.maxpool(self.relu(self.bn1(self.conv1(clip))))
        for number in range(1, 5):
            values = getattr(self, f"layer{number}")(values)
        logits: torch.Tensor = self.fc(self.flatten(self.avgpool(values)))
        return logits


def _register(name: str, summary: str, build: Callable[..., nn.Module]) -> None:
    register_model(
        name,
        summary=summary,
        citation="Hara et al. 2018, arXiv 1711.09577; keys of kenshohara/3D-ResNets-PyTorch",
        classes=KINETICS_CLASSES,
        head="fc.weight",
        reset=kaiming,
    )(build)


for _depth, _blocks in ((18, (2, 2, 2, 2)), (34, (3, 4, 6, 3)), (50, (3, 4, 6, 3))):
    _make = partial(ResNet3D, _blocks, bottleneck=_depth == 50)
    _register(f"resnet3d_{_depth}", f"3D ResNet-{_depth}, 16 frames of 112×112", _make)
    if _depth != 50:
        _register(
            f"resnet3d_{_depth}a",
            f"3D ResNet-{_depth} with shortcuts without weights, as its first public files have",
            partial(_make, zero_shortcut=True),
        )
