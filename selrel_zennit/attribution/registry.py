"""build_method: a name or an object of Zennit's, and a model, make an attributor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .base import VideoAttributor
from .foreign import Method, as_attributor


def build_method(
    method: Method,
    model: nn.Module,
    /,
    *,
    record: str | Iterable[str] = (),
    strict: bool = True,
    **options: Any,
) -> VideoAttributor:
    """Return the attributor of ``method`` for ``model``, with ``.info`` saying what it is.

    ``method`` is a name of ``METHODS``, built with ``options``, or one of Zennit's own objects: a composite, or an
    attributor of ``model``; see as_attributor.

    ``record`` names modules: after a call, ``attributor.recorded[name]`` is the relevance at that module's output, per
    channel and time step ([B,C,T,H,W] at a convolution). For LRP it is the relevance that reaches the output, for the
    methods based on the gradient it is that gradient; see Recorder. With ``strict=False`` operations of the network
    that no rule sees are explained all the same and listed in ``attributor.unseen``; otherwise a call refuses them.

    Raises InputError for an unknown method, option or layer, for ``record`` with a method that has no relevance inside
    the network, for a model in training mode, where dropout and batch norm would explain something else than what
    the network says, for one in half precision, and for one that the method does not fit.
    """
    # Constants made under inference mode (the bounds of z^B, say) could not be differentiated later.
    with torch.inference_mode(False):
        attributor = as_attributor(method, model, options, strict=strict)
    if record:
        attributor.record_at(record)
    return attributor
