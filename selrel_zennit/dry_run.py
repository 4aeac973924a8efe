"""A run of a network for the sake of what can be watched: on fake tensors, which have shapes and no values."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .clip import ClipSpec
from .errors import InputError


class Watch(AbstractContextManager[Any], Protocol):
    """What watches a run: a context, and ``forget`` for a run that failed halfway."""

    def forget(self) -> None:
        """Begin again."""


def dry_run(model: nn.Module, shape: tuple[int, ...] | None, watch: Watch) -> None:
    """Run ``model`` once inside ``watch``, on fake tensors or, where it looks at values, on a clip of zeros.

    ``shape`` is that of a clip without the batch, by default ``model.spec.shape``. Raises InputError where the network
    does not run on a clip of that shape.
    """
    spec = getattr(model, "spec", None)
    shape = shape or (spec or ClipSpec()).shape
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))

    def run(values: AbstractContextManager[Any]) -> None:
        watch.forget()
        with torch.no_grad(), values, watch:
            model(torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device))

    try:
        try:
            run(FakeTensorMode(allow_non_fake_inputs=True))
        except Exception:  # what a network does to look at values
            run(nullcontext())
    except Exception as error:
        sentence = only_for_pictures(model)
        if sentence is not None:
            raise InputError(sentence) from None
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the network does not run on a clip {(1, *shape)} ({type(error).__name__}: {reason}): "
            "set model.spec to what it takes"
        ) from None


def only_for_pictures(model: nn.Module) -> str | None:
    """Return what to say of a network that failed on a clip and has 2D convolutions alone; None for any other."""
    flat = next((name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)
    if flat is None or any(isinstance(module, nn.Conv3d) for module in model.modules()):
        return None
    return (
        f"the network takes pictures, not clips ({flat or 'it'} is a Conv2d): give it a forward that takes [B,3,T,H,W] "
        "and folds time into the batch"
    )
