"""Layers by name, and running a model while one of them is watched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..errors import InputError
from ..text import close_names


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the module of that name. Raises InputError, with the names that come close, where there is none.

    What torch.compile puts into names may be left out.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    modules = {key.replace("_orig_mod.", ""): module for key, module in modules.items()} | modules
    if not name or name not in modules:
        raise InputError(f"the model has no layer {name!r}{close_names(name, modules)}")
    return modules[name]


Volume = Callable[[torch.Tensor], torch.Tensor]


def as_it_is(output: torch.Tensor) -> torch.Tensor:
    """Return the output of a layer that gives [B,C,T,H,W]."""
    return output


def volume_of(model: nn.Module, name: str) -> Volume:
    """Return what makes [B,C,T,H,W] of the output of layer ``name``.

    A transformer says it of its ``cam_layer``, in ``cam_volume``. Raises InputError for another layer of such a
    network, which holds tokens.
    """
    volume: Volume | None = getattr(model, "cam_volume", None)
    if volume is None:
        return as_it_is
    own = getattr(model, "cam_layer", None)
    if name != own:
        raise InputError(f"layer {name!r} of this network holds tokens, not [B,C,T,H,W]: its CAM layer is {own!r}")
    return volume


def run_watching(
    model: nn.Module,
    input: torch.Tensor,
    name: str,
    at_layer: Callable[[torch.Tensor], torch.Tensor],
    volume: Volume = as_it_is,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the model. Return the logits [B,K], and what ``at_layer`` made of the output of layer ``name``.

    The model goes on with that value. ``volume`` makes [B,C,T,H,W] of it. Raises InputError for a layer that gives
    another shape or does not run exactly once.
    """
    kept: torch.Tensor | None = None

    def watch(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        if kept is not None:
            raise InputError(f"layer {name!r} runs more than once in a forward pass; choose another layer")
        if not isinstance(output, torch.Tensor) or volume(output).ndim != 5:
            raise InputError(f"layer {name!r} does not give [B,C,T,H,W]; choose a convolutional layer")
        kept = at_layer(output)
        # The next layer may work in place, which must not change what is kept.
        return kept.clone()

    handle = find_layer(model, name).register_forward_hook(watch)
    try:
        output = model(input)
    finally:
        handle.remove()
    if kept is None:
        raise InputError(f"layer {name!r} does not run in a forward pass; choose another layer")
    return output, kept


def start_graph(output: torch.Tensor) -> torch.Tensor:
    """Return ``output`` as a leaf, and switch gradients on: for ``run_watching`` under ``no_grad``.

    Everything below the layer then runs without a graph. The surrounding ``no_grad`` block restores the mode.
    """
    torch.set_grad_enabled(True)
    return output.detach().requires_grad_()
