"""What an attributor is, as JSON takes it: its options, those left at their defaults too, and its composite's rules."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn
from zennit.attribution import Attributor
from zennit.core import Composite, ParamMod, Stabilizer

from ..clips.spec import ClipSpec
from ..errors import InputError
from .completion import Completed

# Of larger tensors the shape and a hash are written down.
_LARGEST = 64
UNKNOWN = "not known"
_MAPS = {"layer_map": "types", "first_map": "types", "name_map": "names"}
# What a composite holds beside its rules.
_OWN = ("canonizers", "handles", "hook_refs")
_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def provenance(
    attributor: Attributor, model: nn.Module, method: str | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what ``attributor.info`` holds: method, options, attributor, composite, model, weights and clip spec."""
    known = getattr(model, "provenance", {})
    spec = getattr(model, "spec", None)
    return {
        "method": method,
        "options": described(dict(options)),
        "attributor": _name(type(attributor)),
        "composite": described(attributor.composite),
        "model": known.get("model", type(model).__name__),
        "weights": known.get("weights"),
        "weights_sha256": known.get("sha256"),
        "loaded_with": known.get("loaded_with"),
        "clip_spec": spec.to_dict() if isinstance(spec, ClipSpec) else None,
    }


def resolved_options(build: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all the options that ``build(model, **options)`` takes: what is given, and the defaults of the others.

    A default that changes in a later version then does not pass for the old one.
    """
    parameters = list(inspect.signature(build).parameters.values())[1:]
    return {one.name: given.get(one.name, one.default) for one in parameters if one.kind not in _REST}


def label(info: Mapping[str, Any]) -> str:
    """Return a short name: the method's, or that of the composite and of an attributor that is more than Gradient."""
    if info["method"] is not None:
        return str(info["method"])
    attributor = info["attributor"].rpartition(".")[2]
    if info["composite"] is None:
        return str(attributor)
    composite = info["composite"]["class"].rpartition(".")[2]
    return str(composite if attributor == "Gradient" else f"{attributor} of {composite}")


def described(value: Any, exact: bool = False) -> Any:
    """Return ``value`` as JSON takes it: rules, composites, attributors and canonizers by class and parameters.

    With ``exact`` two values have the same description only where they are the same; raises InputError for one that
    keeps to itself what it was made with, as an anonymous function does.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor | np.ndarray):
        return _tensor(torch.as_tensor(value))
    if isinstance(value, Mapping):
        return {str(key): described(one, exact) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [described(one, exact) for one in value]
    if isinstance(value, type):
        return _name(value)
    if isinstance(value, partial):
        return {"partial": described([value.func, *value.args], exact), **described(value.keywords, exact)}
    if callable(value) and hasattr(value, "__qualname__"):
        if "<lambda>" in value.__qualname__ or getattr(value, "__closure__", None):
            return _unknown(value.__qualname__, exact)
        return _name(value)
    if isinstance(value, Stabilizer) and not (value.clip or value.norm_scale):
        return value.epsilon
    if isinstance(value, Composite):
        return _composite(value, exact)
    if hasattr(value, "canonizers"):
        return {"class": _name(type(value)), "canonizers": described(value.canonizers, exact)}
    return {"class": _name(type(value)), **parameters(value, exact)}


def parameters(value: Any, exact: bool = False, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what an object was made with: its constructor's parameters, from its attributes or from its functions.

    Zennit's rules keep theirs in the functions that they are made of.
    """
    found = {}
    inside = None
    for one in list(inspect.signature(type(value).__init__).parameters.values())[1:]:
        if one.kind in _REST or one.name in leave_out:
            continue
        if hasattr(value, one.name):
            found[one.name] = described(getattr(value, one.name), exact)
            continue
        inside = dict(_inside(vars(value))) if inside is None else inside
        name = "stabilizer" if one.name == "epsilon" else one.name
        found[one.name] = described(inside[name], exact) if name in inside else _unknown(one.name, exact, value)
    return found


def _composite(composite: Composite, exact: bool) -> dict[str, Any]:
    if isinstance(composite, Completed):
        found = {**_composite(composite.completed, exact), "canonizers": described(composite.canonizers, exact)}
        return found | ({"added_rules": _rules("types", composite.added, exact)} if composite.added else {})
    found = {"class": _name(type(composite))}
    for name, value in vars(composite).items():
        if name in _MAPS:
            found[name] = _rules(_MAPS[name], value or (), exact)
        elif name not in _OWN and not (name == "module_map" and getattr(value, "__self__", None) is composite):
            found[name] = described(value, exact)
    return {**found, "canonizers": described(composite.canonizers, exact)}


def _rules(keys: str, rules: Any, exact: bool) -> list[dict[str, Any]]:
    return [{keys: described(key, exact), "rule": described(rule, exact)} for key, rule in rules]


def _inside(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of what the functions of a rule have caught; what comes first comes last."""
    for value in reversed(list(values.values())):
        for one in reversed(value) if isinstance(value, list | tuple) else (value,):
            if isinstance(one, ParamMod):
                yield from _caught(one.modifier)
                yield "zero_params", one.zero_params
            elif isinstance(one, FunctionType):
                yield from _caught(one)


def _caught(function: Any) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        value = cell.cell_contents
        yield ("stabilizer" if isinstance(value, Stabilizer) or name == "stabilizer_fn" else name), value


def _tensor(value: torch.Tensor) -> Any:
    value = value.detach().cpu().contiguous()
    if value.numel() <= _LARGEST:
        return value.tolist()
    digest = hashlib.sha256(value.flatten().view(torch.uint8).numpy().data).hexdigest()
    return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest}


def _name(value: Any) -> str:
    name: str = value.__name__
    if getattr(torch, name, None) is value:
        return f"torch.{name}"
    return f"{value.__module__}.{value.__qualname__}"


def _unknown(what: str, exact: bool, owner: Any = None) -> str:
    if exact:
        of = "" if owner is None else f" of {type(owner).__name__}"
        raise InputError(
            f"{what}{of} cannot be written down, so that no calibration could be told from another's: "
            "use functions with a name, and keep what a rule is made with as its attributes"
        )
    return UNKNOWN if owner is not None else what
