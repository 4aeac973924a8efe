"""Small3D: a small 3D CNN with an averaging head, which learns a few classes from scratch on two processor cores."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from ..clips.spec import ClipSpec
from .initialise import kaiming
from .registry import register_model

# name of the convolution, its channels as a multiple of the width, the pool after it
_BLOCKS: tuple[tuple[str, int, tuple[int, int, int] | None], ...] = (
    ("1", 1, (1, 2, 2)),
    ("2", 2, (2, 2, 2)),
    ("3a", 4, None),
    ("3b", 4, (2, 2, 2)),
    ("4a", 8, None),
    ("4b", 8, None),
)


class Small3D(nn.Sequential):
    """Six 3×3×3 convolutions, three max pools, the mean over time and space, one linear layer: [B,3,T,H,W] → [B,K].

    The first convolution takes every second pixel. The modules are ``conv1 … conv4b``, ``relu1 … relu4b``,
    ``pool1 … pool3b``, ``mean``, ``drop``, ``fc``. It has no batch norms: ``selrel train`` puts them in while it
    learns, and folds them into the convolutions when it saves.

    Raises ValueError when the clip of ``spec`` is too short or too small for the pools.
    """

    cam_layer = "relu4b"

    def __init__(
        self,
        num_classes: int,
        *,
        width: int = 16,
        dropout: float = 0.5,
        spec: ClipSpec | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        own = spec or ClipSpec()
        if own.frames < 4 or own.crop < 16:
            raise ValueError(f"Small3D pools time by 4 and space by 16: a clip of {own.frames}×{own.crop} is too small")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for name, multiple, pool in _BLOCKS:
            stride = (1, 2, 2) if name == "1" else (1, 1, 1)
            layers[f"conv{name}"] = nn.Conv3d(channels, width * multiple, kernel_size=3, stride=stride, padding=1)
            layers[f"relu{name}"] = nn.ReLU()
            channels = width * multiple
            if pool:
                layers[f"pool{name}"] = nn.MaxPool3d(pool)
        layers["mean"] = nn.AdaptiveAvgPool3d(1)
        layers["flatten"] = nn.Flatten()
        layers["drop"] = nn.Dropout(dropout)
        layers["fc"] = nn.Linear(channels, num_classes)
        super().__init__(layers)
        self.spec = own
        self.num_classes = num_classes
        self.class_names = list(class_names) if class_names is not None else None

    def reset_parameters(self, seed: int = 0) -> None:
        """Draw all parameters anew (Kaiming, ReLU gain; zero biases) from a generator of its own, in place."""
        kaiming(self, seed)


@register_model(
    "small3d",
    summary="Small3D: 6 convolutions and an averaging head, for training from scratch on a processor",
    citation="this project; the layers of Tran et al. 2015, the head of Tran et al. 2018",
    classes=8,
    head="fc.weight",
)
def small3d(num_classes: int = 8, spec: ClipSpec | None = None) -> Small3D:
    """Return Small3D of width 16."""
    return Small3D(num_classes, spec=spec)
