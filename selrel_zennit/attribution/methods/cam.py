"""Class activation maps of 3D networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import interpolate
from zennit.core import Composite

from ...errors import InputError
from ..base import AttrOutput, VideoAttributor
from ..layers import as_it_is, find_layer, run_watching, start_graph, volume_of
from ..options import choice
from .guided import guided_composite

# What each kind of pooling averages the gradient over: axes of [B,C,T,H,W].
POOLS = {"volume": (2, 3, 4), "step": (3, 4)}


class _CAM(VideoAttributor):
    """What the maps share: the layer and the weights, the upsampling."""

    fast_convolutions = True

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        pool: str = "volume",
        attr_output: AttrOutput = None,
        composite: Composite | None = None,
    ) -> None:
        super().__init__(model, composite, attr_output)
        self.layer_name = layer
        find_layer(model, layer)  # raises now where there is none
        self.volume = volume_of(model, layer)
        self.axes = POOLS[choice("pool", pool, tuple(POOLS))]

    def _map(self, activations: torch.Tensor, gradient: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Return the map, upsampled to ``size`` (T,H,W): [B,1,T,H,W]."""
        activations, gradient = self.volume(activations), self.volume(gradient)
        weights = gradient.mean(self.axes, keepdim=True)
        cam = (weights * activations.detach()).sum(1, keepdim=True).relu()
        return interpolate(cam, size=size, mode="trilinear", align_corners=False)


class GradCAM(_CAM):
    """Grad-CAM over the whole stack: activations of a layer weighted by their mean gradient, summed, then ReLU.

    ``pool`` says over what the gradient is averaged: "volume" (T, H, W) or "step" (H, W, a weight per time step). The
    map is upsampled to the clip (trilinear, ``align_corners=False``) and returned as cam/3 on each of the three
    channels, so that the channel sum is the CAM. The forward pass up to the layer runs without a graph, and the
    backward pass ends at the layer.

    ``layer`` is the name of a module whose output is [B,C,T,H,W]; of a transformer, whose output is tokens, it is the
    model's ``cam_layer``, which its ``cam_volume`` lays out as a volume, the class token dropped.
    Raises InputError for a layer that does not exist, gives another shape, or runs more than once in a forward pass.

    Source: Selvaraju et al. 2017, arXiv 1610.02391; in 3D: Hiley et al. 2020, §4; Saha et al. 2024, arXiv 2404.09067.
    """

    def forward(
        self, input: torch.Tensor, attr_output_fn: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B,K], cam/3 on each channel [B,3,T,H,W])."""
        with torch.no_grad():
            output, activations = run_watching(self.model, input, self.layer_name, start_graph, self.volume)
            (gradient,) = torch.autograd.grad((output,), (activations,), grad_outputs=(attr_output_fn(output),))
        cam = self._map(activations, gradient, input.shape[2:])
        return output, (cam / 3).expand_as(input).contiguous()


class GuidedGradCAM(_CAM):
    """Guided Grad-CAM: guided backpropagation times the undivided Grad-CAM, on each channel. See GradCAM.

    One forward pass, and one backward pass through the whole network, with guided rules. The CAM's weights are the
    plain gradient, as Selvaraju et al. 2017 have it: a second backward pass, from the logits to the layer alone.

    Raises InputError as GradCAM does, and for a network whose ReLUs are not modules.
    """

    def __init__(self, model: nn.Module, layer: str, pool: str = "volume", attr_output: AttrOutput = None) -> None:
        super().__init__(model, layer, pool, attr_output, guided_composite(model))

    def forward(
        self, input: torch.Tensor, attr_output_fn: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B,K], attribution [B,3,T,H,W])."""
        input = input.view_as(input).requires_grad_()
        output, activations = run_watching(self.model, input, self.layer_name, as_it_is, self.volume)
        initial = (attr_output_fn(output),)
        with self.composite.inactive():
            (plain,) = torch.autograd.grad((output,), (activations,), initial, retain_graph=True)
        (guided,) = torch.autograd.grad((output,), (input,), initial)
        return output, guided * self._map(activations, plain, input.shape[2:])


def _cam_layer(name: str, model: nn.Module, layer: str | None) -> str:
    layer = getattr(model, "cam_layer", None) if layer is None else layer
    if layer is None:
        needs = f"{name} needs a layer"
        raise InputError(
            f"{needs}: set model.cam_layer, or build_method({name!r}, model, layer='…')",
            command=f"{needs}: name it by --option layer=NAME, or let the factory set model.cam_layer",
        )
    return layer


def gradcam(model: nn.Module, layer: str | None = None, pool: str = "volume") -> GradCAM:
    """Return Grad-CAM at ``layer`` (default: the model's ``cam_layer``), ``pool`` "volume" or "step".

    Raises InputError where there is no such layer.
    """
    return GradCAM(model, _cam_layer("gradcam", model, layer), pool)


def guided_gradcam(model: nn.Module, layer: str | None = None, pool: str = "volume") -> GuidedGradCAM:
    """Return Guided Grad-CAM at ``layer`` (default: the model's ``cam_layer``), ``pool`` "volume" or "step".

    Raises InputError where there is no such layer.
    """
    return GuidedGradCAM(model, _cam_layer("guided_gradcam", model, layer), pool)
