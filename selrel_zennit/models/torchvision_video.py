"""torchvision's video networks, each with the ClipSpec of its public weights, its CAM layer and its class names.

The networks are torchvision's own, so their files load as they are: ``torchvision.models.video.*_Weights`` and what was
trained with them. Sources: Tran et al. 2018, arXiv 1711.11248 (ResNets); Xie et al. 2018, arXiv 1712.04851 (S3D); Liu
et al. 2022, arXiv 2106.13230 (Swin); Li et al. 2022, arXiv 2112.01526 (MViT v2).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ..clips.spec import ClipSpec
from .initialise import kaiming
from .registry import register_model

KINETICS_CLASSES = 400

_KINETICS = {"value_range": (0.0, 1.0), "mean": (0.43216, 0.394666, 0.37645), "std": (0.22803, 0.22145, 0.216989)}
# Frames and stride are those of the public weights' evaluation: 15 frames per second, half of the usual 30.
_RESNET = ClipSpec(frames=16, stride=2, short_side=(128, 171), crop=112, **_KINETICS)  # type: ignore[arg-type]
_S3D = ClipSpec(frames=128, stride=2, short_side=(256, 256), crop=224, **_KINETICS)  # type: ignore[arg-type]
_SWIN = ClipSpec(
    frames=32,
    stride=2,
    short_side=256,
    crop=224,
    value_range=(0.0, 1.0),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
_MVIT = ClipSpec(
    frames=16,
    stride=4,
    short_side=256,
    crop=224,
    value_range=(0.0, 1.0),
    mean=(0.45, 0.45, 0.45),
    std=(0.225, 0.225, 0.225),
)

# name → ClipSpec, CAM layer, key of the class layer, what it is, source
_NETWORKS: dict[str, tuple[ClipSpec, str, str, str, str]] = {
    "r3d_18": (_RESNET, "layer4", "fc.weight", "ResNet-18 of 3×3×3 convolutions", "Tran et al. 2018, arXiv 1711.11248"),
    "mc3_18": (
        _RESNET,
        "layer4",
        "fc.weight",
        "ResNet-18, 3D convolutions below and 2D above",
        "Tran et al. 2018, arXiv 1711.11248",
    ),
    "r2plus1d_18": (
        _RESNET,
        "layer4",
        "fc.weight",
        "ResNet-18 of convolutions in space, then in time",
        "Tran et al. 2018, arXiv 1711.11248",
    ),
    "s3d": (
        _S3D,
        "features.15",
        "classifier.1.weight",
        "Inception of convolutions in space, then in time; its class layer is a convolution",
        "Xie et al. 2018, arXiv 1712.04851",
    ),
    "swin3d_t": (_SWIN, "norm", "head.weight", "video Swin transformer, tiny", "Liu et al. 2022, arXiv 2106.13230"),
    "mvit_v2_s": (
        _MVIT,
        "blocks.15.norm1",
        "head.1.weight",
        "multiscale vision transformer v2, small",
        "Li et al. 2022, arXiv 2112.01526",
    ),
}


def _channels_last(output: torch.Tensor) -> torch.Tensor:
    """Return [B,C,T,H,W] of Swin's [B,T,H,W,C]."""
    return output.movedim(-1, 1)


def _patches(output: torch.Tensor) -> torch.Tensor:
    """Return [B,C,T,H,W] of MViT's last tokens [B,1+T·H·W,C], the class token dropped."""
    tokens = output[:, 1:].transpose(1, 2)
    return tokens.reshape(*tokens.shape[:2], _MVIT.frames // 2, _MVIT.crop // 32, _MVIT.crop // 32)


# How a transformer's CAM layer lays out its clip. MViT's is the input of the last attention: behind it the class token
# alone reaches the logits, and the patches have no gradient.
_CAM_VOLUMES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"swin3d_t": _channels_last, "mvit_v2_s": _patches}


def kinetics_names(num_classes: int) -> list[str] | None:
    """Return the 400 classes of Kinetics-400 in the order of the public weights, or None for another number."""
    if num_classes != KINETICS_CLASSES:
        return None
    from torchvision.models._meta import _KINETICS400_CATEGORIES

    return list(_KINETICS400_CATEGORIES)


def _build(name: str, num_classes: int = KINETICS_CLASSES, spec: ClipSpec | None = None) -> nn.Module:
    from torchvision.models import video

    own, cam_layer, *_ = _NETWORKS[name]
    make: Callable[..., nn.Module] = getattr(video, name)
    model: Any = make(weights=None, num_classes=num_classes)
    model.spec = spec or own
    model.num_classes = num_classes
    model.class_names = kinetics_names(num_classes)
    model.cam_layer = cam_layer
    if name in _CAM_VOLUMES:
        model.cam_volume = _CAM_VOLUMES[name]
    return model  # type: ignore[no-any-return]


for _name, (*_, _head, _summary, _citation) in _NETWORKS.items():
    register_model(
        _name,
        summary=f"{_summary} (torchvision)",
        citation=_citation,
        classes=KINETICS_CLASSES,
        head=_head,
        reset=kaiming,
    )(partial(_build, _name))
