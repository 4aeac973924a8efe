"""Which layers see the clip itself, and which give the logits: by what runs, not by the order of registration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from zennit.types import Linear

from ..errors import InputError
from ..text import close_names
from .dry_run import dry_run
from .operations import AVERAGES, MOVES, NORMS, PRODUCTS, SCALES, SHAPES, SUMS, name_of, tensors_in


@dataclass(frozen=True)
class Paths:
    """The layers (convolutions and linear layers) at both ends of a network, in the order in which they run.

    stems  take the clip, or what no layer has changed: moved, scaled, shifted, averaged
    heads  gave the logits: nothing with weights lies between
    """

    stems: tuple[nn.Module, ...]
    heads: tuple[nn.Module, ...]


def paths_of(model: nn.Module, shape: tuple[int, ...] | None = None) -> Paths:
    """Return the ends of a network, by a dry run on a clip of ``shape``; see ``dry_run`` for the errors."""
    form = shape, tuple((id(module), id(vars(module).get("forward"))) for module in model.modules())
    known = _KNOWN.get(model)
    if known is not None and known[0] == form:
        return known[1]
    watch = _ClipsWay(model)
    dry_run(model, shape, watch)
    paths = watch.paths()
    if model not in (*paths.stems, *paths.heads):  # which would keep it alive
        _KNOWN[model] = form, paths
    return paths


# Several rules of one composite ask for the ends of the same network.
_KNOWN: WeakKeyDictionary[nn.Module, tuple[Any, Paths]] = WeakKeyDictionary()


def class_layers(model: nn.Module, name: str | None = None) -> list[nn.Module]:
    """Return the layers that gave the logits: one, as a rule, and several where logits are sums.

    ``name`` asks for one of them. A network that no clip is known for (without ``spec``) has the layer that it
    registers last, as Zennit's composites take it.

    Raises InputError for a name that does not exist or does not give the logits, and for a model without such a layer.
    """
    named = named_layer(model, name)
    if getattr(model, "spec", None) is None:
        return [named]
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    heads = list(paths_of(model).heads) if len(layers) > 1 else layers
    if name is not None and named not in heads:
        names = [key for key, module in model.named_modules() if module in heads]
        raise InputError(f"layer {name!r} does not give the logits: the class layer is {' and '.join(names) or 'none'}")
    if not heads:
        raise InputError(
            "no layer was seen to give the logits: something that is no module lies between; use nn.Linear or nn.Conv3d"
        )
    return heads


def named_layer(model: nn.Module, name: str | None) -> nn.Module:
    """Return the layer of that name, or the one that is registered last.

    Raises InputError for a name that does not exist or is no linear layer or convolution, and for a model without one.
    """
    layers: dict[str, nn.Module] = {key: module for key, module in model.named_modules() if isinstance(module, Linear)}
    if not layers:
        raise InputError("the model has no linear layer or convolution to take for its class layer")
    if name is None:
        return list(layers.values())[-1]
    if name not in layers:
        raise InputError(f"the model has no linear layer or convolution {name!r}{close_names(name, layers)}")
    return layers[name]


@dataclass(frozen=True)
class _Seen:
    """What is known of a value: whether it is the clip's but for moving and scaling, and the last layers behind it."""

    raw: bool
    layers: tuple[nn.Module, ...] = ()


class _ClipsWay(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the clip through the operations of one run, by the memory that values lie in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.forget()

    def forget(self) -> None:
        self.seen: dict[int, _Seen] = {}
        self.kept: list[Any] = []  # so that no address is used twice
        self.stems: list[nn.Module] = []
        self.heads: tuple[nn.Module, ...] = ()
        self.started = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        made = tensors_in(output)
        if not self.started:
            # The first tensor that is made is the clip itself.
            self._say(made, _Seen(raw=True))
            self.started = bool(made)
            return output
        known = [self._of(value) for value in tensors_in((args, kwargs))]
        taken = [one for one in known if one is not None]
        name = name_of(func)
        if taken and name not in SHAPES:
            self._say(made, _behind(name, taken))
        return output

    def _of(self, value: torch.Tensor) -> _Seen | None:
        return self.seen.get(_memory(value))

    def _say(self, values: list[torch.Tensor], seen: _Seen) -> None:
        for value in values:
            self.kept.append(value)
            self.seen[_memory(value)] = seen

    def note(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module is self.model:
            ends = [seen for seen in map(self._of, tensors_in(output)) if seen is not None]
            self.heads = tuple(dict.fromkeys(layer for end in ends for layer in end.layers))
        if isinstance(module, Linear) and args and isinstance(args[0], torch.Tensor):
            taken = self._of(args[0])
            if taken is not None and taken.raw and module not in self.stems:
                self.stems.append(module)
            if taken is not None and isinstance(output, torch.Tensor):
                self._say([output], _Seen(raw=False, layers=(module,)))

    def paths(self) -> Paths:
        return Paths(tuple(self.stems), self.heads)


def _behind(name: str, taken: list[_Seen]) -> _Seen:
    layers = tuple(dict.fromkeys(layer for one in taken for layer in one.layers))
    if name in PRODUCTS:
        return _Seen(raw=False)
    passing = name in MOVES or name in AVERAGES or name in SUMS or name in NORMS
    scaled = name in SCALES and len(taken) == 1
    return _Seen(raw=(passing or scaled) and all(one.raw for one in taken), layers=layers)


def _memory(value: torch.Tensor) -> int:
    return int(value.untyped_storage()._cdata)
