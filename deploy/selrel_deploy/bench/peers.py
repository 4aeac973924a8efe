"""Captum and pytorch-grad-cam, where they are installed and have the method: what a user of them would call."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# (clip [1,3,T,H,W], class) → relevance [1,T,H,W]
Relevance = Callable[[torch.Tensor, int], torch.Tensor]
Build = Callable[[nn.Module, nn.Module | None], Relevance]

NAMES = {"captum": "captum.attr", "pytorch-grad-cam": "pytorch_grad_cam"}


def _captum(name: str, **settings: Any) -> Build:
    def build(model: nn.Module, layer: nn.Module | None) -> Relevance:
        import captum.attr  # type: ignore[import-untyped, unused-ignore]

        attribute = getattr(captum.attr, name)(model).attribute

        def relevance(clip: torch.Tensor, target: int) -> torch.Tensor:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the hooks it sets
                found = attribute(clip.clone().requires_grad_(), target=target, **settings)
            return found.detach().sum(1)  # type: ignore[no-any-return]

        return relevance

    return build


def _captum_gradcam(model: nn.Module, layer: nn.Module | None) -> Relevance:
    from captum.attr import LayerAttribution, LayerGradCam

    peer = LayerGradCam(model, layer)

    def relevance(clip: torch.Tensor, target: int) -> torch.Tensor:
        cam = peer.attribute(clip.clone().requires_grad_(), target=target, relu_attributions=True)
        resized = LayerAttribution.interpolate(cam, tuple(clip.shape[2:]), "trilinear")
        return resized.detach().sum(1)  # type: ignore[no-any-return]

    return relevance


def _captum_guided_gradcam(model: nn.Module, layer: nn.Module | None) -> Relevance:
    from captum.attr import GuidedGradCam

    peer = GuidedGradCam(model, layer)

    def relevance(clip: torch.Tensor, target: int) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = peer.attribute(clip.clone().requires_grad_(), target=target, interpolate_mode="trilinear")
        return found.detach().sum(1)  # type: ignore[no-any-return]

    return relevance


def _grad_cam(model: nn.Module, layer: nn.Module | None) -> Relevance:
    from pytorch_grad_cam import GradCAM  # type: ignore[import-untyped, unused-ignore]
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # type: ignore[import-untyped, unused-ignore]

    def relevance(clip: torch.Tensor, target: int) -> torch.Tensor:
        # It runs backward() with the parameters it finds; those of load_model are frozen, so the clip must ask.
        with GradCAM(model=model, target_layers=[layer]) as peer:
            cam = peer(clip.clone().requires_grad_(), targets=[ClassifierOutputTarget(target)])
        return torch.from_numpy(cam).float()

    return relevance


# Peers that scale each map to 0…1: theirs can be compared up to a factor only.
SCALED = frozenset({"pytorch-grad-cam"})

# method → peer → builder; None for the layer where the method needs none
PEERS: dict[str, dict[str, Build]] = {
    "gradient": {"captum": _captum("Saliency", abs=False)},
    "gradient_x_input": {"captum": _captum("InputXGradient")},
    "guided_backprop": {"captum": _captum("GuidedBackprop")},
    "deconvnet": {"captum": _captum("Deconvolution")},
    "gradcam": {"captum": _captum_gradcam, "pytorch-grad-cam": _grad_cam},
    "guided_gradcam": {"captum": _captum_guided_gradcam},
}


def is_installed(peer: str) -> bool:
    """Say whether a peer can be imported."""
    try:
        importlib.import_module(NAMES[peer])
    except ImportError:
        return False
    return True


def peers_of(method: str, model: nn.Module) -> tuple[dict[str, Relevance], list[str]]:
    """Return peer → function for a method on a network, and the peers that have the method and are not installed."""
    layer = dict(model.named_modules()).get(str(getattr(model, "cam_layer", "")))
    having = PEERS.get(method, {})
    if "gradcam" in method and layer is None:
        having = {}
    missing = [peer for peer in having if not is_installed(peer)]
    return {peer: build(model, layer) for peer, build in having.items() if peer not in missing}, missing
