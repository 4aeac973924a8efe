"""Checks of options that several methods take."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ..clips.spec import ClipSpec
from ..errors import InputError

Reference = str | torch.Tensor


def whole(name: str, value: Any, least: int = 1) -> int:
    """Return ``value``. Raises InputError unless it is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def choice(name: str, value: Any, known: tuple[str, ...]) -> str:
    """Return ``value``. Raises InputError unless it is one of ``known``."""
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}")
    return value


class ReferenceInput:
    """What stands for "no information" in a clip: "mean", "black", or a tensor that broadcasts to [B,3,T,H,W].

    "mean" is zero in model units: the training set's mean colour where the model subtracts it. "black" is a pixel of
    0, and needs ``model.spec``. A tensor is in model units. ``option`` is the name for messages. Raises InputError for
    anything else.
    """

    def __init__(self, option: str, reference: Reference, model: nn.Module) -> None:
        self.option = option
        if isinstance(reference, torch.Tensor):
            if not reference.is_floating_point() or not torch.isfinite(reference).all():
                raise InputError(f"{option} must hold finite floats in model units, got {reference.dtype}")
            self.value = reference.detach()
        elif choice(option, reference, ("mean", "black")) == "mean":
            self.value = torch.zeros(())
        else:
            spec = getattr(model, "spec", None)
            if not isinstance(spec, ClipSpec):
                raise InputError(
                    f"{option}='black' needs model.spec = ClipSpec(…); or give {option} as a tensor",
                    command=f"--option {option}=black needs --clip-spec FILE",
                )
            self.value = torch.from_numpy(np.array(spec.bounds()[0]))

    def like(self, clip: torch.Tensor) -> torch.Tensor:
        """Return the reference in the shape, type and place of ``clip``. Raises InputError where it does not fit."""
        try:
            return self.value.to(clip).expand_as(clip)
        except RuntimeError:
            shape, wanted = tuple(self.value.shape), tuple(clip.shape)
            raise InputError(f"{self.option} of shape {shape} does not broadcast to the clip's {wanted}") from None
