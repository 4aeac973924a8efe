"""Layers by name, and running a model while one of them is watched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..errors import InputError
from ..text import close_names


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the module of that name. Raises InputError, with the names that come close, where there is none."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if not name or name not in modules:
        raise InputError(f"the model has no layer {name!r}{close_names(name, modules)}")
    return modules[name]


def run_watching(
    model: nn.Module, input: torch.Tensor, name: str, at_layer: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the model. Return the logits [B,K], and what ``at_layer`` made of the output [B,C,T,H,W] of layer ``name``.

    The model goes on with that value. Raises InputError for a layer that gives another shape or does not run exactly
    once.
    """
    kept: torch.Tensor | None = None

    def watch(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        if kept is not None:
            raise InputError(f"layer {name!r} runs more than once in a forward pass; choose another layer")
        if not isinstance(output, torch.Tensor) or output.ndim != 5:
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
