"""Logits out of what a network returns: a tensor, or a tuple, dict or object that holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import InputError


class TakeOutput:
    """A forward hook after which a network returns one of its outputs: an index, a key, or the name of an attribute.

    Without ``key`` it takes what is called ``logits``, or the only output there is, and leaves anything else as it is.
    The network's modules, names and state dict stay what they are; the hook goes along with a copy.
    """

    def __init__(self, key: int | str | None = None) -> None:
        self.key = key

    def register(self, model: nn.Module) -> None:
        """Hook a network. Raises InputError for a TorchScript program with a key: it takes no hooks."""
        if not isinstance(model, torch.jit.ScriptModule):
            model.register_forward_hook(self)
        elif self.key is not None:
            raise InputError("a TorchScript program takes no hooks: wrap it in a forward that returns the logits alone")

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Return the output that was asked for. Raises InputError where there is none of that name."""
        parts = _parts(output)
        if self.key is None:
            own = getattr(output, "logits", parts.get("logits"))
            own = next(iter(parts.values())) if own is None and len(parts) == 1 else own
            return own if isinstance(own, torch.Tensor) else output
        if isinstance(output, torch.Tensor):
            raise InputError(f"the network returns a single tensor {_shape(output)}: leave output (--output) out")
        named = next((key for key in (self.key, str(self.key)) if key in parts), None)
        if named is not None:
            return parts[named]
        if isinstance(self.key, int) and -len(parts) <= self.key < len(parts):
            return list(parts.values())[self.key]
        raise InputError(
            f"the network has no output {self.key!r}: it returns {_described(output)}; choose one of these"
        )


def checked_logits(output: Any, clips: int | None = None) -> torch.Tensor:
    """Return ``output``, logits [B,K] of floating-point numbers; ``clips`` is B where it is known.

    Raises InputError for anything else, with what there is to choose from.
    """
    if isinstance(output, torch.Tensor):
        fits = output.ndim == 2 and output.shape[1] > 0 and clips in (None, len(output))
        if fits and output.is_floating_point():
            return output
        what = f"{output.dtype} {_shape(output)}".removeprefix("torch.")
        what += f" for {clips} clip{'s' * (clips > 1)}" if clips else ""
        remedy = "wrap it in a forward that returns one row of scores for each clip"
        if output.ndim == 3:
            remedy = "wrap it in a forward that averages them to one row for each clip, such as network(clip).mean(1)"
        raise InputError(f"the network must return logits [B,K], got {what}: {remedy}")
    parts = _parts(output)
    if not parts:
        raise InputError(
            f"the network must return logits [B,K], got {type(output).__name__}: wrap it in a forward that returns them"
        )
    tables = [key for key, value in parts.items() if isinstance(value, torch.Tensor) and value.ndim == 2]
    key = (tables or list(parts))[0]
    raise InputError(
        f"the network must return logits [B,K], got {_described(output)}: take one with "
        f"load_model(network, output={key!r}), on the command line --output {key}"
    )


def logits_of(model: nn.Module, clip: torch.Tensor) -> torch.Tensor:
    """Run a network on clips [B,3,T,H,W] and return its logits [B,K]. Raises InputError where it gives none."""
    return checked_logits(TakeOutput()(model, (clip,), model(clip)), len(clip))


@contextmanager
def only_logits(model: nn.Module) -> Iterator[None]:
    """Inside the block, ``model`` returns logits [B,K], or raises InputError."""

    def check(module: nn.Module, args: Any, output: Any) -> torch.Tensor:
        clip = args[0] if args else None
        return checked_logits(TakeOutput()(module, args, output), len(clip) if isinstance(clip, torch.Tensor) else None)

    if isinstance(model, torch.jit.ScriptModule):  # it takes no hooks
        yield
        return
    handle = model.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _parts(output: Any) -> dict[Any, Any]:
    """Return what a container holds, by key, name or place; nothing of a tensor."""
    if isinstance(output, torch.Tensor) or output is None:
        return {}
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple | list):
        return dict(zip(getattr(output, "_fields", range(len(output))), output, strict=True))
    return dict(getattr(output, "__dict__", {}))


def _described(output: Any, at_most: int = 4) -> str:
    parts = _parts(output)
    told = [f"{key}: {_shape(value)}" for key, value in list(parts.items())[:at_most]]
    more = f", and {len(parts) - at_most} more" if len(parts) > at_most else ""
    return f"{type(output).__name__} ({', '.join(told)}{more})"


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__
