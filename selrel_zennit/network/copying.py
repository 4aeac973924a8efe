"""A copy of a network to work on: modules of its own, the network's numbers, and nothing that leads back to it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import InputError


def own_copy(model: nn.Module) -> nn.Module:
    """Return a network that computes what ``model`` does, to be rewritten, hooked and run on stand-ins.

    Parameters are new objects that share their memory with the originals, each module's its own, also where two
    modules share one: one of them may be replaced. They ask for no gradients. Buffers, and tensors that modules keep
    as plain attributes, are copies. Hooks come along.

    Raises InputError for a network that Python cannot copy.
    """
    memo: dict[int, Any] = {}
    with torch.inference_mode(False), torch.no_grad():
        for module in model.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    memo[id(parameter)] = nn.Parameter(_plain(parameter), requires_grad=False)
            for value in _kept_tensors(module):
                memo.setdefault(id(value), _plain(value).clone())
        try:
            made: nn.Module = copy.deepcopy(model, dict(memo))
        except Exception:
            made = _copied_in_part(model, memo)
        _untie(made)
    return made


def _copied_in_part(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a network with attributes that Python cannot copy (locks, files, streams): those are shared."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                try:
                    copy.deepcopy(value, dict(memo))
                except Exception:  # whatever the attribute raises
                    memo[id(value)] = value
    try:
        made: nn.Module = copy.deepcopy(model, dict(memo))
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {reason}), and an explanation works on "
            "a copy: make copy.deepcopy(network) work, by a __deepcopy__ of its own where need be"
        ) from None
    return made


def _plain(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same memory that autograd can use, a copy where it was made under inference mode."""
    return value.clone() if value.is_inference() else value.detach()


def _kept_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from (value for value in module._buffers.values() if value is not None)
    yield from (value for value in vars(module).values() if isinstance(value, torch.Tensor))


def _untie(model: nn.Module) -> None:
    """Give every module parameters of its own, of the same memory where they were shared."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) in seen:
                module._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=False)
            elif parameter is not None:
                seen.add(id(parameter))
