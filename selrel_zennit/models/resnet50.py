"""ResNet-50 on the frames of a clip, with temporal shifts (TSM) or an LSTM behind it.

Its convolutions are 3D ones of a single step, 1×k×k: the same numbers as 2D ones on each frame, and every layer holds
[B,C,T,H,W], as Grad-CAM and the z^B rule take it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from ..clips.spec import ClipSpec
from .initialise import kaiming
from .registry import State, register_model
from .torchvision_video import KINETICS_CLASSES, kinetics_names

_IMAGENET = {"value_range": (0.0, 1.0), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TSM_SPEC = ClipSpec(frames=8, stride=8, short_side=256, crop=224, **_IMAGENET)  # type: ignore[arg-type]
LSTM_SPEC = ClipSpec(frames=16, stride=2, short_side=256, crop=224, **_IMAGENET)  # type: ignore[arg-type]
_UCF101_CLASSES = 101
_FEATURES, _HIDDEN = 2048, 512
# What public files call a part, and what it is called here. In each list, all that fit are applied in this order.
_LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "tsm": ((r"^base_model\.", ""), (r"\.conv1\.net\.", ".conv1."), (r"^new_fc\.", "fc.")),
    "mmaction2": (
        (r"^backbone\.", ""),
        (r"\bconv(\d)\.conv\.(net\.)?", r"conv\1."),
        (r"\bconv(\d)\.bn\.", r"bn\1."),
        (r"\.downsample\.conv\.", ".downsample.0."),
        (r"\.downsample\.bn\.", ".downsample.1."),
        (r"^cls_head\.fc_cls\.", "fc."),
    ),
}


class TemporalShift(nn.Module):
    """An eighth of the channels one step back in time, another eighth one step on; zeros where nothing comes from."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return [B,C,T,H,W]."""
        fold = input.shape[1] // 8
        earlier = functional.pad(input[:, :fold, 1:], (0, 0, 0, 0, 0, 1))
        later = functional.pad(input[:, fold : 2 * fold, :-1], (0, 0, 0, 0, 1, 0))
        return torch.cat([earlier, later, input[:, 2 * fold :]], 1)


class Bottleneck(nn.Module):
    """Three convolutions on each frame, 1, 3 and 1 wide, and what goes around them."""

    def __init__(self, inputs: int, planes: int, stride: int, shift: bool) -> None:
        super().__init__()
        outputs = 4 * planes
        self.shift = TemporalShift() if shift else nn.Identity()
        self.conv1 = nn.Conv3d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv3d(planes, planes, (1, 3, 3), (1, stride, stride), padding=(0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(planes)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv3d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(outputs)
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.downsample.append(nn.Conv3d(inputs, outputs, 1, (1, stride, stride), bias=False))
            self.downsample.append(nn.BatchNorm3d(outputs))
        self.relu3 = nn.ReLU()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return [B,C,T,H,W]."""
        low = self.relu1(self.bn1(self.conv1(self.shift(input))))
        high = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(low)))))
        output: torch.Tensor = self.relu3(high + self.downsample(input))
        return output


class FrameResNet50(nn.Module):
    """ResNet-50 without its end: [B,3,T,H,W] in model units → features [B,2048,T,H/32,W/32]. Keys as torchvision's."""

    cam_layer = "layer4"

    def __init__(self, shift: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, (1, 7, 7), (1, 2, 2), padding=(0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1))
        channels = 64
        for number, (blocks, planes) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), 1):
            layer = nn.Sequential()
            for index in range(blocks):
                layer.append(Bottleneck(channels, planes, 2 if number > 1 and index == 0 else 1, shift))
                channels = 4 * planes
            self.add_module(f"layer{number}", layer)

    def features(self, clip: torch.Tensor) -> torch.Tensor:
        """Return [B,2048,T,H/32,W/32]."""
        values = self.maxpool(self.relu(self.bn1(self.conv1(clip))))
        for number in range(1, 5):
            values = getattr(self, f"layer{number}")(values)
        return values  # type: ignore[no-any-return]


class TSMResNet50(FrameResNet50):
    """ResNet-50 with temporal shifts: [B,3,T,H,W] in model units → logits [B,K], the mean over the frames.

    Every block begins with a shift (the files' "shift8_blockres"). The mean over frames is taken before the class
    layer, which is linear, so that the logits are the same.

    Source: Lin et al. 2019, arXiv 1811.08383.
    """

    def __init__(self, num_classes: int = KINETICS_CLASSES, spec: ClipSpec | None = None, dropout: float = 0.5) -> None:
        super().__init__(shift=True)
        self.spec = spec or TSM_SPEC
        self.num_classes = num_classes
        self.class_names = kinetics_names(num_classes)
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(_FEATURES, num_classes)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Return logits [B,K]."""
        logits: torch.Tensor = self.fc(self.dropout(self.flatten(self.avgpool(self.features(clip)))))
        return logits


class ResNet50LSTM(FrameResNet50):
    """ResNet-50 on each frame, an LSTM over the frames: [B,3,T,H,W] in model units → logits [B,K] of its last step.

    Under rules the LSTM's gates get no relevance; see LSTMCanonizer.

    Source: the structure of Donahue et al. 2015, arXiv 1411.4389, as Li et al. 2020, arXiv 2005.00375, compare it.
    """

    def __init__(self, num_classes: int = _UCF101_CLASSES, spec: ClipSpec | None = None, hidden: int = _HIDDEN) -> None:
        super().__init__(shift=False)
        self.spec = spec or LSTM_SPEC
        self.num_classes = num_classes
        self.class_names = None
        self.avgpool = nn.AdaptiveAvgPool3d((None, 1, 1))
        self.flatten = nn.Flatten(2)
        self.lstm = nn.LSTM(_FEATURES, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Return logits [B,K]."""
        frames = self.flatten(self.avgpool(self.features(clip))).transpose(1, 2)
        steps, _ = self.lstm(frames)
        logits: torch.Tensor = self.fc(steps[:, -1])
        return logits


def recognise(state: Mapping[str, torch.Tensor]) -> tuple[str, State, ClipSpec]:
    """Return the name of a TSM file's layout, its tensors under our names, and the ClipSpec it was trained with."""
    layout = "tsm"
    if any(key.startswith(("backbone.", "cls_head.")) for key in state):
        layout = "mmaction2"
    elif not any(key.startswith("base_model.") for key in state):
        return "own", _inflated(state), TSM_SPEC
    converted: State = {}
    for key, tensor in state.items():
        for found, put in _LAYOUTS[layout]:
            key = re.sub(found, put, key)
        converted[key] = tensor
    return layout, _inflated(converted), TSM_SPEC


def recognise_lstm(state: Mapping[str, torch.Tensor]) -> tuple[str, State, ClipSpec]:
    """Return the same for ResNet50LSTM, of which no public file is known: its own keys, 2D convolutions too."""
    return "own", _inflated(state), LSTM_SPEC


def _inflated(state: Mapping[str, torch.Tensor]) -> State:
    """Give the kernels of 2D convolutions their single step in time."""
    return {key: tensor.unsqueeze(2) if tensor.ndim == 4 else tensor for key, tensor in state.items()}


@register_model(
    "tsm_resnet50",
    summary="TSM: ResNet-50 on 8 frames of 224×224, with channels shifted in time",
    citation="Lin et al. 2019, arXiv 1811.08383; keys of mit-han-lab/temporal-shift-module and mmaction2",
    classes=KINETICS_CLASSES,
    recognise=recognise,
    head="fc.weight",
    reset=kaiming,
)
def tsm_resnet50(num_classes: int = KINETICS_CLASSES, spec: ClipSpec | None = None) -> TSMResNet50:
    """Return the network of the public files."""
    return TSMResNet50(num_classes, spec)


@register_model(
    "resnet50_lstm",
    summary="ResNet-50 on each of 16 frames of 224×224, an LSTM over them; under rules its gates get no relevance",
    citation="Donahue et al. 2015, arXiv 1411.4389; compared in Li et al. 2020, arXiv 2005.00375",
    classes=_UCF101_CLASSES,
    recognise=recognise_lstm,
    head="fc.weight",
    reset=kaiming,
)
def resnet50_lstm(num_classes: int = _UCF101_CLASSES, spec: ClipSpec | None = None) -> ResNet50LSTM:
    """Return the network with an LSTM of 512 units."""
    return ResNet50LSTM(num_classes, spec)
