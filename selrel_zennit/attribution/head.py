"""A check that methods with a rule for the class layer share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..errors import InputError

AttrOutputFn = Callable[[torch.Tensor], torch.Tensor]


def checked(head: nn.Module, attr_output_fn: AttrOutputFn) -> AttrOutputFn:
    """Return ``attr_output_fn`` with a check in front: InputError where ``head`` cannot have made the logits."""

    def check(logits: torch.Tensor) -> torch.Tensor:
        width = getattr(head, "out_features", getattr(head, "out_channels", None))
        if width != logits.shape[1]:
            raise InputError(
                f"the class layer was taken to be {head}, but the model gives {logits.shape[1]} logits: "
                "name the class layer with head='…'"
            )
        return attr_output_fn(logits)

    return check
