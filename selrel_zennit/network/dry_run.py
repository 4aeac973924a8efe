"""A run of a network for the sake of what can be watched: on fake tensors, which have shapes and no values."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Protocol

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from zennit.types import BatchNorm

from ..clips.spec import ClipSpec
from ..errors import InputError
from ..text import one_line
from .copying import own_copy
from .kinds import eagerly
from .output import TakeOutput


class RunWatch(AbstractContextManager[Any], Protocol):
    """What watches a run: a context, ``forget`` for a run that failed halfway, and ``note`` for modules that ran."""

    def forget(self) -> None:
        """Begin again."""

    def note(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Take note of a module of the network, with what it took and gave."""


def dry_run(model: nn.Module, shape: tuple[int, ...] | None, watch: RunWatch, kinds: Any = nn.Module) -> None:
    """Run a copy of ``model`` once inside ``watch``, on fake tensors or, where it looks at values, on a clip of zeros.

    The network itself is not run: it might keep what it was given. ``watch.note`` is told of its modules of these
    ``kinds``. ``shape`` is that of a clip without the batch, by default ``model.spec.shape``. Gradients are off.

    Raises InputError where the network does not run on a clip of that shape.
    """
    spec = getattr(model, "spec", None)
    shape = shape or (spec or ClipSpec()).shape
    made = own_copy(model)
    parameter = next((p for p in made.parameters() if p.is_floating_point()), torch.zeros(()))

    def noting(module: nn.Module) -> Any:
        return lambda copied, args, output: watch.note(module, args, output)

    TakeOutput().register(made)
    for module, copied in zip(model.modules(), made.modules(), strict=True):
        if isinstance(copied, BatchNorm):
            # Fake tensors take batch norms apart in Python, for half of the time; of its values nothing is asked.
            object.__setattr__(copied, "forward", torch.clone)
        if isinstance(module, kinds):
            # Of the network itself the logits are noted, which a hook may take out of what it returns.
            copied.register_forward_hook(noting(module), prepend=copied is not made)

    def run(values: AbstractContextManager[Any]) -> None:
        watch.forget()
        with eagerly(), torch.inference_mode(False), torch.no_grad(), values, watch:
            made(torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device))

    try:
        try:
            with _silent(logging.getLogger("torch._subclasses.fake_tensor")):
                run(FakeTensorMode(allow_non_fake_inputs=True))
        except InputError:
            raise
        except Exception:  # what a network does to look at values
            run(nullcontext())
    except InputError:
        raise
    except Exception as error:
        clip = torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device)
        raise InputError(does_not_run(model, clip, error)) from None


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """Let nothing be logged: what fails on fake tensors is said in one sentence, or works without them."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def does_not_run(model: nn.Module, clip: torch.Tensor, error: Exception) -> str:
    """Return what to say of a network that raised ``error`` on ``clip`` [B,3,T,H,W]: what it would take, if known."""
    for axes, turned in (("[B,T,C,H,W]", (0, 2, 1, 3, 4)), ("[B,T,H,W,C]", (0, 2, 3, 4, 1))):
        with suppress(Exception), torch.enable_grad():
            own_copy(model)(clip.detach().permute(turned).clone().requires_grad_())
            order = ", ".join(map(str, turned))
            return (
                f"the network takes clips {axes}, not [B,C,T,H,W]: wrap it in a module whose forward turns the axes, "
                f"return network(clip.permute({order}))"
            )
    sentence = only_for_pictures(model)
    if sentence is not None:
        return sentence
    return (
        f"the network does not run on a clip {tuple(clip.shape)} ({type(error).__name__}: {one_line(error)}): "
        "set model.spec (--clip-spec) to what it takes, or wrap it in a forward that takes the clip alone"
    )


def only_for_pictures(model: nn.Module) -> str | None:
    """Return what to say of a network that failed on a clip and has 2D convolutions alone; None for any other."""
    flat = next((name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)
    if flat is None or any(isinstance(module, nn.Conv3d) for module in model.modules()):
        return None
    return (
        f"the network takes pictures, not clips ({flat or 'it'} is a Conv2d): give it a forward that takes [B,3,T,H,W] "
        "and folds time into the batch"
    )
