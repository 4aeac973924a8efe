"""explain_many(): the same clips by several methods, for the same class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .attribution.target import Target
from .clips.spec import Frames
from .errors import InputError
from .explanation import Explanation
from .pipeline import device_of, explain, spec_of


def explain_many(
    model: nn.Module, clip: torch.Tensor | Frames, methods: Sequence[str], target: Target = "top1", **settings: Any
) -> dict[str, Explanation]:
    """Explain clips by several methods, given by name: method → Explanation, in the order given.

    ``clip`` is [B,3,T,H,W] in model units, or frames uint8 [N,H,W,3], of which the first clip is taken. All explain
    the class that the first one does. ``settings`` are those of ``explain``, for every method.
    ``outputs.grid.write_grid`` makes a figure of them.

    Raises InputError for no method, one that is named twice, and as ``explain`` does.
    """
    if isinstance(methods, str) or not methods or len(set(methods)) < len(methods):
        raise InputError(f"methods must be a list of at least one name, each once, got {methods!r}")
    if not isinstance(clip, torch.Tensor):
        clip = spec_of(model).clip(clip).to(device_of(model))
    found: dict[str, Explanation] = {}
    for method in methods:
        found[method] = explain(model, clip, method, target, **settings)
        target = found[method].target.tolist()
    return found
