"""Kinds of networks that cannot be explained, or not by every method: one sentence each, which says what can."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from ..errors import InputError

# What methods ask of a network; the others place rules or hooks in its modules.
VALUES_ALONE = frozenset({"occlusion", "random"})
GRADIENT_ALONE = frozenset({"gradient", "gradient_x_input", "integrated_gradients", "smoothgrad", "smoothgrad_squared"})


def check_kind(model: Any, method: str | None = None) -> None:
    """Raise InputError for what is no network, and for one of a kind that ``method`` cannot explain.

    Without ``method``, for one that a method with rules or hooks cannot explain.
    """
    refuse_programs(model)
    for faults in (_lazy, _scripted, _quantised):
        if (faults is _scripted and method in GRADIENT_ALONE) or (faults is not _lazy and method in VALUES_ALONE):
            continue
        sentence = next(faults(model), None)
        if sentence is not None:
            raise InputError(sentence)


def refuse_programs(model: Any) -> None:
    """Raise InputError for what is no nn.Module, and for a network that holds a program of torch.export.

    Whether such a program trains (dropout, batch norms) is written down in it, and cannot be seen or changed.
    """
    if isinstance(model, torch.export.ExportedProgram):
        raise InputError(_EXPORTED.format("it"))
    if not isinstance(model, nn.Module):
        raise InputError(f"a network must be a torch.nn.Module, got {type(model).__name__}: pass the module itself")
    for name, module in model.named_modules():
        if isinstance(module, fx.GraphModule) and _is_exported(module):
            raise InputError(_EXPORTED.format(name or "it"))


_EXPORTED = "{} is a program of torch.export, which has no layers left: pass the network that it was exported from"


def _is_exported(module: fx.GraphModule) -> bool:
    return any(isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes)


def _scripted(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            yield (
                f"{name or 'the network'} is a TorchScript program, whose layers take no rules and no hooks: pass the "
                "network that it was made from, with weights=program.state_dict(); gradient, integrated_gradients and "
                "occlusion explain it as it is"
            )


def _quantised(model: nn.Module) -> Iterator[str]:
    said = "{} is quantised ({}), which has no gradient: explain the network as it was before, in float32; occlusion "
    said += "explains it as it is"
    for name, module in model.named_modules():
        kind = type(module)
        if ".quantized." in f"{kind.__module__}." or kind.__module__.startswith("bitsandbytes."):
            yield said.format(name or "the network", kind.__name__)
    for name, value in _tensors(model):
        if value.is_quantized or hasattr(type(value), "__tensor_flatten__"):
            yield said.format(name, type(value.data).__name__)


def _lazy(model: nn.Module) -> Iterator[str]:
    for name, value in _tensors(model):
        if is_lazy(value):
            yield f"{name} has no values yet, its layer is a lazy one: run the network once on a clip, model(clip)"


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@contextmanager
def eagerly() -> Iterator[None]:
    """Inside the block, what torch.compile has compiled runs as it is written, so that hooks and modes see it.

    That is not possible before torch 2.6; there a compiled network runs as it is.
    """
    # Nothing is compiled before this module is there, and importing it takes seconds.
    dynamo, stance = sys.modules.get("torch._dynamo"), getattr(torch.compiler, "set_stance", None)
    if dynamo is None or stance is None:
        yield
        return
    # The first is for calls, the second for calls while make_fx writes them down.
    with stance("force_eager"), dynamo.config.patch(error_on_nested_fx_trace=False):
        yield
