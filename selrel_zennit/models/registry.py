"""The registry of networks, and load_model: a name, a factory or a network, weights, and the ClipSpec for them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import plugins
from ..clips.spec import ClipSpec
from ..errors import InputError
from ..files import sha256_file
from ..network.kinds import refuse_programs
from ..network.output import TakeOutput
from ..text import close_names, one_line
from .weights import check_state, checked_state, common_prefixes, read_card, read_weights, renamed_to_fit, with_counters

State = dict[str, torch.Tensor]
Weights = str | Path | Mapping[str, Any]


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
    name: str | Callable[..., nn.Module] | nn.Module,
    weights: Weights | None = None,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    spec: ClipSpec | None = None,
    output: int | str | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Return a network in eval mode, with ``.spec`` (ClipSpec) and ``.provenance`` (model, weights, layout).

    ``name`` is a name of ``MODELS``, ``"package.module:factory"``, a factory itself, or a network, of which a copy is
    made. ``weights`` is a file (safetensors, or a state dict that torch reads with ``weights_only=True``), a state
    dict, ``"embedded"`` where one ships, ``"random"`` (drawn with ``seed``), or ``"own"``: as the factory returned
    them, the default for a network. A prefix that all keys have in common is taken off, or put in front, where that
    makes them fit; ``.provenance`` then says so. ``spec`` replaces the ClipSpec that belongs to the model or the file;
    one of `selrel train` holds its own, and the names of its classes.

    A network that returns more than its logits, or them in a container, gets a forward hook, after which it returns
    what ``output`` names: an index, a key or an attribute. Of one with ``.logits`` these are taken by themselves.

    Raises InputError for an unknown name, missing or unfitting weights, a factory that returns no module, a network
    that says nothing of its clips where no ``spec`` is given, and a program of torch.export.
    """
    # Tensors made under inference mode could not be differentiated later.
    with torch.inference_mode(False):
        if isinstance(name, str) and name not in MODELS:
            plugins.load(plugins.MODELS, MODELS, name)
        entry = MODELS.get(name) if isinstance(name, str) else None
        trained_on, class_names = _said_in(weights)
        spec, trained_for = spec or trained_on, None if class_names is None else len(class_names)
        if isinstance(name, str) and entry is None and ":" not in name:
            raise InputError(
                f"no model named {name!r}{close_names(name, MODELS)}; "
                "see `selrel list models`, or pass package.module:factory"
            )
        if entry is not None:
            label = entry.name
            model, provenance = _load_registered(entry, weights, num_classes or trained_for, seed, spec)
        elif isinstance(name, nn.Module):
            label = type(name).__qualname__
            model, provenance = _load_network(label, name, weights, num_classes, seed)
        else:
            if isinstance(name, torch.export.ExportedProgram) or not (isinstance(name, str) or callable(name)):
                refuse_programs(name)
            label = name if isinstance(name, str) else getattr(name, "__qualname__", repr(name))
            factory = plugins.import_named(name, "--model") if isinstance(name, str) else name
            if not callable(factory):
                raise InputError(f"{label} is no function that makes a network: give --model package.module:factory")
            number = num_classes or (trained_for if takes_classes(factory) else None)
            model, provenance = _load_factory(label, factory, weights, number, seed)
        refuse_programs(model)
        if spec is not None:
            model.spec = spec  # type: ignore[assignment]
        elif getattr(model, "spec", None) is None:
            raise InputError(
                f"{label} does not say what clips it takes: give spec=ClipSpec(frames=…, crop=…, mean=…) "
                "(--clip-spec FILE), as it was trained, or set its .spec"
            )
        elif not isinstance(model.spec, ClipSpec):
            raise InputError(f"{label}: .spec must be a ClipSpec, got {type(model.spec).__name__}; set sr.ClipSpec(…)")
        if output is not None or entry is None:
            TakeOutput(output).register(model)
        if class_names is not None:
            model.class_names = class_names  # type: ignore[assignment]
        # What it takes, beside the weights, to load the same again.
        given = {"num_classes": num_classes, "seed": seed, "output": output}
        model.provenance = {"model": label, **provenance, "loaded_with": given}  # type: ignore[assignment]
        # Explanations differentiate with respect to the input alone.
        return model.to(device).eval().requires_grad_(False)


def takes_classes(factory: Callable[..., nn.Module]) -> bool:
    """Say whether a factory takes ``num_classes``."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False
    return "num_classes" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _load_registered(
    entry: ModelEntry, weights: Weights | None, num_classes: int | None, seed: int, spec: ClipSpec | None
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
    state, said = _read(entry.embedded if weights == "embedded" and entry.embedded is not None else weights)
    where, layout = str(said["weights"]), None
    if entry.recognise is not None:
        layout, state, file_spec, prefix = _recognised(entry, state, where)
        spec = spec or file_spec
        said |= {"prefix": f"{prefix!r} taken off all keys"} if prefix else {}
    in_file = int(state[entry.head].shape[0]) if entry.head in state else entry.classes
    model = _build(entry, num_classes or in_file, spec)
    said |= _fill(model, state, where, num_classes or in_file)
    return model, {**said, **({"weights": "embedded"} if weights == "embedded" else {}), "layout": layout}


def _recognised(entry: ModelEntry, state: State, where: str) -> tuple[str, State, ClipSpec, str]:
    """Return what ``entry.recognise`` makes of a state dict, as it is or without what all of its keys begin with."""
    assert entry.recognise is not None
    refusal: InputError | None = None
    for prefix in ("", *common_prefixes(state)):
        try:
            return *entry.recognise({key.removeprefix(prefix): value for key, value in state.items()}), prefix
        except InputError as error:
            refusal = refusal or error
    raise InputError(f"{where}: {refusal}") from None


def _read(weights: Weights) -> tuple[State, dict[str, Any]]:
    """Return the tensors of a file or a state dict, and what there is to say of where they came from."""
    if isinstance(weights, Mapping):
        where = "the state dict"
        return checked_state(weights, where), {"weights": where, "sha256": None, "layout": None}
    path = Path(weights)
    return read_weights(path), {"weights": str(path), "sha256": sha256_file(path), "layout": None}


def _said_in(weights: Weights | None) -> tuple[ClipSpec | None, list[str] | None]:
    """Return the ClipSpec and the class names that a weight file of `selrel train` holds."""
    if not isinstance(weights, str | Path) or str(weights) in ("embedded", "random", "own"):
        return None, None
    path = Path(weights)
    card = read_card(path) if path.is_file() else {}
    try:
        return (ClipSpec.from_dict(card["spec"]), list(card["classes"])) if card else (None, None)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not say what clips it takes ({error}); train it again") from None


def _fill(model: nn.Module, state: State, where: str, num_classes: int | None) -> dict[str, Any]:
    """Load a state dict into a network; return what was done to its keys. Raises InputError where it does not fit."""
    expected = model.state_dict()
    state, done = renamed_to_fit(state, expected)
    state = with_counters(state, expected)
    check_state(state, expected, where, num_classes)
    model.load_state_dict(state)
    return {"prefix": done} if done else {}


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
    label: str, factory: Callable[..., nn.Module], weights: Weights | None, num_classes: int | None, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    if weights is None:
        raise InputError(
            f"no weights given for {label}: pass --weights FILE, --weights own (as the factory returns them) "
            "or --weights random"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = factory() if num_classes is None else factory(num_classes=num_classes)
        except Exception as error:
            refused = num_classes is not None and isinstance(error, TypeError) and "num_classes" in str(error)
            remedy = ": leave --num-classes out, it takes none" if refused else ""
            raise InputError(
                f"{label} failed to make a network ({type(error).__name__}: {one_line(error)}){remedy}"
            ) from error
    if isinstance(model, torch.export.ExportedProgram):
        refuse_programs(model)
    if not isinstance(model, nn.Module):
        raise InputError(f"{label} must return a torch.nn.Module, got {type(model).__name__}: let it make one")
    return _weighted(label, model, weights, num_classes, seed)


def _load_network(
    label: str, network: nn.Module, weights: Weights | None, num_classes: int | None, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    if num_classes is not None:
        raise InputError(f"num_classes goes with a function that makes a network, {label} is one: leave it out")
    refuse_programs(network)
    return _weighted(label, _copied(network), "own" if weights is None else weights, None, seed)


def _weighted(
    label: str, model: nn.Module, weights: Weights, num_classes: int | None, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    if any(value.is_inference() for value in (*model.parameters(), *model.buffers())):
        model = _copied(model)
    if isinstance(weights, str) and weights == "embedded":
        raise InputError(
            f"{label} is not of this package and has no embedded weights: pass --weights FILE, own or random"
        )
    if isinstance(weights, str) and weights == "random":
        _reset(model, seed)
        return model, {"weights": f"random seed {seed}", "sha256": None, "layout": None}
    if isinstance(weights, str) and weights == "own":
        return model, {"weights": "own", "sha256": None, "layout": None}
    state, said = _read(weights)
    return model, {**said, **_fill(model, state, str(said["weights"]), num_classes)}


def _copied(network: nn.Module) -> nn.Module:
    """Return a copy with tensors of its own, those made under inference mode as ordinary ones."""
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for module in network.modules():
            for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
                if isinstance(value, nn.Parameter) and type(value) is nn.Parameter:
                    memo[id(value)] = nn.Parameter(value.detach().clone(), value.requires_grad)
                elif type(value) is torch.Tensor:
                    # A weight that old weight_norm keeps as an attribute is no leaf, which deepcopy refuses.
                    memo[id(value)] = value.detach().clone()
    try:
        copied: nn.Module = copy.deepcopy(network, memo)
    except Exception as error:  # whatever an attribute of the network raises
        raise InputError(
            f"{type(network).__name__} cannot be copied ({type(error).__name__}: {one_line(error)}): "
            "pass a function that makes it"
        ) from None
    return copied


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
