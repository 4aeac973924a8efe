"""build_method: a name and a model make an attributor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..clip import ClipSpec
from ..errors import InputError
from ..text import close_names
from .base import VideoAttributor
from .fit import check_network, check_rules
from .table import METHODS


def build_method(
    name: str, model: nn.Module, /, *, record: str | Iterable[str] = (), **options: Any
) -> VideoAttributor:
    """Return the attributor of method ``name`` for ``model``, with ``.info`` saying what it is.

    ``record`` names modules: after a call, ``attributor.recorded[name]`` is the relevance at that module's output, per
    channel and time step ([B,C,T,H,W] at a convolution). For LRP it is the relevance that reaches the output, for the
    methods based on the gradient it is that gradient; see Recorder.

    Raises InputError for an unknown method, option or layer, for ``record`` with a method that has no relevance inside
    the network, for a model in training mode, where dropout and batch norm would explain something else than what
    the network says, for one in half precision, and for one that the method does not fit.
    """
    if name not in METHODS:
        raise InputError(f"no method named {name!r}{close_names(name, METHODS)}; there are {', '.join(METHODS)}")
    entry = METHODS[name]
    unknown = sorted(set(options) - set(entry.options))
    if unknown:
        known = ", ".join(entry.options) or "none"
        raise InputError(
            f"{name} has no option {unknown[0]!r}{close_names(unknown[0], entry.options)}; its options: {known}"
        )
    check_network(model)
    if entry.rules:
        check_rules(name, model)
    # Constants made under inference mode (the bounds of z^B, say) could not be differentiated later.
    with torch.inference_mode(False):
        attributor = entry.build(model, **options)
    if record:
        attributor.record_at(record)
    provenance = getattr(model, "provenance", {})
    spec = getattr(model, "spec", None)
    attributor.info = {
        "method": name,
        "options": options,
        "model": provenance.get("model", type(model).__name__),
        "weights": provenance.get("weights"),
        "weights_sha256": provenance.get("sha256"),
        "clip_spec": spec.to_dict() if isinstance(spec, ClipSpec) else None,
    }
    return attributor
