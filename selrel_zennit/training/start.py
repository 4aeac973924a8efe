"""What a training begins with: a network of the pack or the user's, random or with weights that know something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from .. import plugins
from ..clips.spec import ClipSpec
from ..errors import InputError
from ..files import sha256_file
from ..models.registry import MODELS, load_model, takes_classes
from ..models.weights import read_weights

Model = str | Callable[..., nn.Module]


def starting_network(
    model: Model, classes: int, spec: ClipSpec | None, initial: str | Path | None, seed: int
) -> tuple[nn.Module, str | None]:
    """Return a network for so many classes, in eval mode, and the SHA-256 of the file that it begins with, if any.

    Its weights are random, or those of ``initial``: a weight file, what else ``load_model`` takes as ``weights``, or
    "own" for a factory that brings them. A class layer for other classes is left out. ``spec`` None is the file's, else
    the network's own. Raises InputError where a layer but the last does not fit.
    """
    if initial is None or initial == "own":
        return _load(model, classes, spec, seed, initial or "random"), None
    name = model if isinstance(model, str) else ""
    if name and name not in MODELS:
        plugins.load(plugins.MODELS, MODELS, name)
    if name in MODELS:
        # By its name, so that public files are understood.
        loaded = load_model(name, initial)
        state, spec = loaded.state_dict(), spec or spec_of(loaded)
        assert isinstance(loaded.provenance, dict)
        digest = loaded.provenance["sha256"]
    else:
        state, digest = read_weights(initial), sha256_file(initial)
    network = _load(model, classes, spec, seed, "random")
    own = network.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    left = {key.rpartition(".")[0] for key in own if key not in fitting}
    if left - {list(own)[-1].rpartition(".")[0]}:
        raise InputError(
            f"{initial} does not fit the network: {len(fitting)} of {len(own)} tensors do, "
            "and only the class layer may differ; give weights of the same network"
        )
    network.load_state_dict({**own, **fitting})
    return network, digest


def check_logits(logits: torch.Tensor, classes: int) -> None:
    """Raise InputError where a network does not give one logit for each class."""
    if logits.ndim != 2 or logits.shape[1] != classes:
        raise InputError(
            f"the network gives {list(logits.shape[1:])} values for a clip and the data has {classes} classes: let its "
            "factory take num_classes, or train with --classes"
        )


def _load(model: Model, classes: int, spec: ClipSpec | None, seed: int, weights: str) -> nn.Module:
    if isinstance(model, str) and ":" not in model:
        return load_model(model, weights, num_classes=classes, spec=spec, seed=seed)
    factory = plugins.import_named(model, "--model") if isinstance(model, str) else model
    number = classes if takes_classes(factory) else None
    return load_model(model, weights, num_classes=number, spec=spec, seed=seed)


def spec_of(network: nn.Module) -> ClipSpec:
    """Return what clips a network of ``load_model`` takes."""
    assert isinstance(network.spec, ClipSpec)
    return network.spec
