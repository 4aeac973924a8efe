"""Relevance at layers inside the network, kept while an attributor runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..errors import InputError
from .layers import find_layer


class Recorder:
    """Keeps what flows back into the output of named modules: for LRP their relevance, for gradients the gradient.

    Inside the ``with`` block the modules have a forward hook; after it none. ``recorded`` maps each name to a tensor
    of the shape of the module's output ([B,C,T,H,W] for a convolution), detached, on the model's device; it holds the
    last call only, and nothing after a call that raised. Of several backward passes through a module the last counts.

    Raises InputError for a layer that does not exist; after a call for one that returns no single tensor, runs more
    than once, or that no relevance reaches.
    """

    def __init__(self, model: nn.Module, names: str | Iterable[str]) -> None:
        names = [names] if isinstance(names, str) else list(names)
        self.layers = {name: find_layer(model, name) for name in names}
        self.recorded: dict[str, torch.Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Recorder:
        self.recorded = {}
        self._handles = [layer.register_forward_hook(self._watch(name)) for name, layer in self.layers.items()]
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        missing = [name for name in self.layers if name not in self.recorded]
        if exc_type is not None or missing:
            self.recorded = {}
        if exc_type is None and missing:
            raise InputError(f"no relevance reaches layer {missing[0]!r} with this method; record another layer")

    def _watch(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        seen = False

        def keep(relevance: torch.Tensor) -> None:
            self.recorded[name] = relevance.detach()

        def watch(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal seen
            if not torch.is_grad_enabled():
                return  # a canonizer's dry run, or a method that wants the logits first
            if torch._C._current_graph_task_id() != -1:
                return  # a checkpoint, which runs its modules again in the backward pass
            if not isinstance(output, torch.Tensor):
                raise InputError(f"layer {name!r} does not return one tensor; record another layer")
            if seen:
                raise InputError(f"layer {name!r} runs more than once in a forward pass; record another layer")
            seen = True
            if output.requires_grad:
                self._handles.append(output.register_hook(keep))  # type: ignore[no-untyped-call]

        return watch
