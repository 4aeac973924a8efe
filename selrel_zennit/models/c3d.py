"""C3D (Tran et al. 2015) as Hiley et al. 2020 use it, every operation a module so that Zennit's rules can see it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from ..clips.spec import ClipSpec
from .c3d_layouts import recognise
from .registry import register_model

# name of the convolution, channels as a multiple of the width, number of the pool that follows
_BLOCKS: tuple[tuple[str, int, str | None], ...] = (
    ("1", 1, "1"),
    ("2", 2, "2"),
    ("3a", 4, None),
    ("3b", 4, "3"),
    ("4a", 8, None),
    ("4b", 8, "4"),
    ("5a", 8, None),
    ("5b", 8, "5"),
)


class C3D(nn.Sequential):
    """Eight 3×3×3 convolutions, five max pools, three linear layers: [B,3,T,H,W] in model units → logits [B,K].

    The modules are ``conv1 … conv5b``, ``relu1 … relu5b``, ``pool1 … pool5``, ``fc6``, ``fc7``, ``fc8``; the keys of
    the state dict are those of the public files. ``width`` is the channels of the first convolution (64 in the paper)
    and ``hidden`` those of the linear layers (4096). With ``batch_norm`` a batch norm ``bn…`` follows each
    convolution, for training small networks from scratch.

    Raises ValueError when the clip of ``spec`` is too short or too small for the pools.
    """

    cam_layer = "relu5b"

    def __init__(
        self,
        num_classes: int,
        *,
        width: int = 64,
        hidden: int = 4096,
        dropout: float = 0.5,
        batch_norm: bool = False,
        spec: ClipSpec | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self_spec = spec or ClipSpec()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if self_spec.frames < 16 or self_spec.crop < 16:
            raise ValueError(
                f"C3D pools time and space by 16: a clip of {self_spec.frames}×{self_spec.crop} is too small"
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels, steps, size = 3, self_spec.frames, self_spec.crop
        for name, multiple, pool in _BLOCKS:
            layers[f"conv{name}"] = nn.Conv3d(channels, width * multiple, kernel_size=3, padding=1)
            channels = width * multiple
            if batch_norm:
                layers[f"bn{name}"] = nn.BatchNorm3d(channels)
            layers[f"relu{name}"] = nn.ReLU()
            if pool == "1":
                layers["pool1"] = nn.MaxPool3d((1, 2, 2))
                size //= 2
            elif pool == "5":
                layers["pool5"] = nn.MaxPool3d(2, padding=(0, 1, 1))
                steps, size = steps // 2, size // 2 + 1
            elif pool:
                layers[f"pool{pool}"] = nn.MaxPool3d(2)
                steps, size = steps // 2, size // 2
        layers["flatten"] = nn.Flatten()
        layers["fc6"] = nn.Linear(channels * steps * size * size, hidden)
        layers["relu6"] = nn.ReLU()
        layers["drop6"] = nn.Dropout(dropout)
        layers["fc7"] = nn.Linear(hidden, hidden)
        layers["relu7"] = nn.ReLU()
        layers["drop7"] = nn.Dropout(dropout)
        layers["fc8"] = nn.Linear(hidden, num_classes)
        super().__init__(layers)
        self.spec = self_spec
        self.num_classes = num_classes
        self.class_names = list(class_names) if class_names is not None else None

    @torch.no_grad()
    def reset_parameters(self, seed: int = 0) -> None:
        """Draw all parameters anew (Kaiming, ReLU gain; zero biases) from a generator of its own, in place."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


@register_model(
    "c3d",
    summary="C3D: 8 convolutions 3×3×3 and 3 linear layers, 16 frames of 112×112",
    citation="Tran et al. 2015, arXiv 1412.0767; training as in Hiley et al. 2020, arXiv 2003.14285",
    classes=101,
    recognise=recognise,
    head="fc8.weight",
)
def c3d(num_classes: int = 101, spec: ClipSpec | None = None) -> C3D:
    """Return the C3D of the papers: width 64, 4096 hidden units."""
    return C3D(num_classes, spec=spec)
