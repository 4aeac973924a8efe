"""Class activation maps of 3D networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import interpolate

from ..errors import InputError
from ..text import close_names
from .base import AttrOutput, VideoAttributor
from .registry import register_method


class GradCAM(VideoAttributor):
    """Grad-CAM over the whole stack: activations of a layer weighted by their mean gradient over T, H, W, then ReLU.

    The map is upsampled to the clip (trilinear, ``align_corners=False``) and returned as cam/3 on each of the three
    channels, so that the channel sum is the CAM. The forward pass up to the layer runs without a graph, and the
    backward pass ends at the layer.

    ``layer`` is the name of a module whose output is [B,C,T,H,W]. Raises InputError for a layer that does not exist,
    gives another shape, or runs more than once in a forward pass.

    Source: Selvaraju et al. 2017, arXiv 1610.02391; in 3D: Hiley et al. 2020, §4; Saha et al. 2024, arXiv 2404.09067.
    """

    def __init__(self, model: nn.Module, layer: str, attr_output: AttrOutput = None) -> None:
        super().__init__(model, attr_output=attr_output)
        modules = dict(model.named_modules())
        if not layer or layer not in modules:
            raise InputError(f"the model has no layer {layer!r}{close_names(layer, modules)}")
        self.layer_name = layer
        self.layer = modules[layer]

    def forward(
        self, input: torch.Tensor, attr_output_fn: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B,K], cam/3 on each channel [B,3,T,H,W])."""
        leaf: torch.Tensor | None = None

        def start_graph(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            nonlocal leaf
            if leaf is not None:
                raise InputError(
                    f"layer {self.layer_name!r} runs more than once in a forward pass; choose another layer"
                )
            if not isinstance(output, torch.Tensor) or output.ndim != 5:
                raise InputError(f"layer {self.layer_name!r} does not give [B,C,T,H,W]; choose a convolutional layer")
            leaf = output.detach().requires_grad_()
            torch.set_grad_enabled(True)
            # The next layer may work in place, which a leaf does not allow.
            return leaf.clone()

        handle = self.layer.register_forward_hook(start_graph)
        try:
            # no_grad ends with the block, whatever the hook switched on inside it.
            with torch.no_grad():
                output = self.model(input)
                if leaf is None:
                    raise InputError(f"layer {self.layer_name!r} does not run in a forward pass; choose another layer")
                (gradient,) = torch.autograd.grad((output,), (leaf,), grad_outputs=(attr_output_fn(output),))
        finally:
            handle.remove()
        weights = gradient.mean((2, 3, 4), keepdim=True)
        cam = (weights * leaf.detach()).sum(1, keepdim=True).relu()
        cam = interpolate(cam, size=input.shape[2:], mode="trilinear", align_corners=False)
        return output, (cam / 3).expand_as(input).contiguous()


@register_method(
    "gradcam",
    summary="Grad-CAM at the last convolution, weights pooled over time and space",
    citation="Selvaraju et al. 2017, arXiv 1610.02391",
    passes=1.05,
    compilable=True,
)
def gradcam(model: nn.Module, layer: str | None = None) -> GradCAM:
    """Return Grad-CAM at ``layer`` (default: the model's ``cam_layer``). Raises InputError where there is none."""
    layer = layer or getattr(model, "cam_layer", None)
    if not layer:
        raise InputError("gradcam needs a layer: set model.cam_layer, or build_method('gradcam', model, layer='…')")
    return GradCAM(model, layer)
