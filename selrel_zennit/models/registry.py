"""The registry of networks, and load_model: a name or a factory, weights, and the ClipSpec that belongs to them."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..clip import ClipSpec
from ..errors import InputError
from ..files import sha256_file
from ..text import close_names
from .weights import check_state, read_weights, with_counters

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ModelEntry:
    """A network of the registry.

    ``build(num_classes=…, spec=…)`` makes it; ``recognise(state)`` turns a public file's keys into its own and says
    which ClipSpec belongs to the file; ``embedded`` is the weight file that ships with the package, if one does;
    ``classes`` is the number of classes where neither the caller nor a file says; ``reset(model, seed)`` draws random
    weights where the network has no ``reset_parameters(seed)`` of its own.
    """

    name: str
    build: Callable[..., nn.Module]
    summary: str
    citation: str
    classes: int
    recognise: Callable[[Mapping[str, torch.Tensor]], tuple[str, State, ClipSpec]] | None = None
    embedded: Path | None = None
    head: str | None = None
    reset: Callable[[nn.Module, int], None] | None = None


MODELS: dict[str, ModelEntry] = {}


def register_model(name: str, **fields: Any) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Register a factory ``(num_classes=…, spec=…) -> nn.Module`` under ``name``; ``fields`` are ModelEntry's.

    "random" weights are drawn by ``reset``, or the network's ``reset_parameters(seed)``, else module by module.
    Raises ValueError when the name is taken.
    """

    def register(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if name in MODELS:
            raise ValueError(f"a model named {name!r} is registered already")
        MODELS[name] = ModelEntry(name=name, build=build, **fields)
        return build

    return register


def load_model(
    name: str | Callable[..., nn.Module],
    weights: str | Path | None = None,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    spec: ClipSpec | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Return a network in eval mode, with ``.spec`` (ClipSpec) and ``.provenance`` (model, weights, layout).

    ``name`` is a name of ``MODELS``, ``"package.module:factory"``, or a factory itself. ``weights`` is a file
    (safetensors, or a state dict that torch reads with ``weights_only=True``), ``"embedded"`` where one ships,
    ``"random"`` (drawn with ``seed``), or ``"own"``: as the factory returned them. ``spec`` replaces the ClipSpec that
    belongs to the model or the file.

    Raises InputError for an unknown name, missing or unfitting weights, and a factory that returns no module.
    """
    entry = MODELS.get(name) if isinstance(name, str) else None
    if isinstance(name, str) and entry is None and ":" not in name:
        raise InputError(
            f"no model named {name!r}{close_names(name, MODELS)}; "
            "see `selrel list models`, or pass package.module:factory"
        )
    label = name if isinstance(name, str) else getattr(name, "__qualname__", repr(name))
    model, provenance = (
        _load_registered(entry, weights, num_classes, seed, spec)
        if entry is not None
        else _load_factory(label, _import_factory(name) if isinstance(name, str) else name, weights, num_classes, seed)
    )
    if spec is not None:
        model.spec = spec  # type: ignore[assignment]
    elif getattr(model, "spec", None) is None:
        model.spec = ClipSpec()  # type: ignore[assignment]
        provenance["clip_spec"] = "none given: clips are cut as for C3D"
    elif not isinstance(model.spec, ClipSpec):
        raise InputError(f"{label}: .spec must be a ClipSpec, got {type(model.spec).__name__}; set sr.ClipSpec(…)")
    model.provenance = {"model": label, **provenance}  # type: ignore[assignment]
    # Explanations differentiate with respect to the input alone.
    return model.to(device).eval().requires_grad_(False)


def _load_registered(
    entry: ModelEntry, weights: str | Path | None, num_classes: int | None, seed: int, spec: ClipSpec | None
) -> tuple[nn.Module, dict[str, Any]]:
    if weights is None and entry.embedded is not None:
        weights = "embedded"
    if weights is None:
        raise InputError(
            f"{entry.name} ships without weights: pass --weights FILE, or --weights random for an untrained one"
        )
    if weights == "random":
        model = _build(entry, num_classes or entry.classes, spec)
        (entry.reset or _reset)(model, seed)
        return model, {"weights": f"random seed {seed}", "sha256": None, "layout": None}
    if weights == "own":
        raise InputError(f"--weights own is for factories; for {entry.name} pass --weights FILE or random")
    if weights == "embedded" and entry.embedded is None:
        having = ", ".join(other.name for other in MODELS.values() if other.embedded) or "none"
        raise InputError(f"{entry.name} has no embedded weights (these have: {having}): pass --weights FILE or random")
    path = entry.embedded if weights == "embedded" else Path(weights)
    assert path is not None
    state: State = read_weights(path)
    layout = None
    if entry.recognise is not None:
        try:
            layout, state, file_spec = entry.recognise(state)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        spec = spec or file_spec
    in_file = int(state[entry.head].shape[0]) if entry.head in state else entry.classes
    model = _build(entry, num_classes or in_file, spec)
    state = with_counters(state, model.state_dict())
    check_state(state, model.state_dict(), path, num_classes or in_file)
    model.load_state_dict(state)
    source = "embedded" if weights == "embedded" else str(path)
    return model, {"weights": source, "sha256": sha256_file(path), "layout": layout}


def _build(entry: ModelEntry, num_classes: int, spec: ClipSpec | None) -> nn.Module:
    """Return the network with whatever numbers it has: all of them are overwritten."""
    try:
        # On the meta device: drawing 78 million numbers only to overwrite them takes longer than reading the file.
        with torch.device("meta"):
            model = entry.build(num_classes=num_classes, spec=spec)
        if next(model.buffers(), None) is None:
            return model.to_empty(device="cpu")
        # A buffer may hold constants that no file and no reset brings back.
        return entry.build(num_classes=num_classes, spec=spec)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{entry.name} cannot be built for {num_classes} classes: {error}") from None


def _load_factory(
    label: str, factory: Callable[..., nn.Module], weights: str | Path | None, num_classes: int | None, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    if weights is None:
        raise InputError(
            f"no weights given for {label}: pass --weights FILE, --weights own (as the factory returns them) "
            "or --weights random"
        )
    if weights == "embedded":
        raise InputError(
            f"{label} is not of this package and has no embedded weights: pass --weights FILE, own or random"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = factory() if num_classes is None else factory(num_classes=num_classes)
        except Exception as error:
            raise InputError(f"{label} failed to make a network: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{label} must return a torch.nn.Module, got {type(model).__name__}")
    if weights == "random":
        _reset(model, seed)
        return model, {"weights": f"random seed {seed}", "sha256": None, "layout": None}
    if weights == "own":
        return model, {"weights": "own", "sha256": None, "layout": None}
    path = Path(weights)
    state = with_counters(read_weights(path), model.state_dict())
    check_state(state, model.state_dict(), path, num_classes)
    model.load_state_dict(state)
    return model, {"weights": str(path), "sha256": sha256_file(path), "layout": None}


def _reset(model: nn.Module, seed: int) -> None:
    own = getattr(model, "reset_parameters", None)
    if callable(own) and "seed" in inspect.signature(own).parameters:
        own(seed)
        return
    # A factory may have loaded weights of its own; "random" must not keep them.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()


def _import_factory(name: str) -> Callable[..., nn.Module]:
    module_name, _, attribute = name.partition(":")
    # A console script does not look into the current folder, where a user's own network usually lies.
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise InputError(
            f"{name}: cannot import {module_name} ({error}); give --model package.module:factory"
        ) from None
    finally:
        sys.path.remove("")
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise InputError(f"{name}: {module_name} has no function {attribute!r}{close_names(attribute, dir(module))}")
    return factory  # type: ignore[no-any-return]
