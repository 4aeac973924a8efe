"""RelevanceSource: which model and method a relevance map comes from, exactly enough to tell two apart."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn
from zennit.attribution import Attributor

from .attribution import METHODS
from .errors import InputError


@dataclass(frozen=True)
class RelevanceSource:
    """Whose relevance it is.

    ``weights`` is the SHA-256 of the weight file or, for weights that came from no file, what they are ("random seed
    0", "own") and a SHA-256 of their values. ``options`` are all the options of the method, those left at their
    defaults too, as JSON takes them. ``clip_spec`` is the model's ClipSpec as a dict.

    Raises InputError on construction for fields of other types.
    """

    model: str
    weights: str
    method: str
    options: Mapping[str, Any]
    clip_spec: Mapping[str, Any]

    def __post_init__(self) -> None:
        kinds = {"model": str, "weights": str, "method": str, "options": Mapping, "clip_spec": Mapping}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise InputError(f"{name} of a relevance source must be {kind.__name__}, got {getattr(self, name)!r}")
        if not isinstance(self.clip_spec.get("frames"), int):
            raise InputError("clip_spec of a relevance source must hold the number of frames")

    @property
    def steps(self) -> int:
        """T, the time steps of a clip."""
        return int(self.clip_spec["frames"])

    @classmethod
    def of(cls, attributor: Attributor) -> RelevanceSource:
        """Return whose relevance an attributor of ``build_method`` gives.

        Raises InputError for another attributor, which does not say what it is.
        """
        info = getattr(attributor, "info", {})
        if info.get("method") not in METHODS or info.get("clip_spec") is None:
            raise InputError(
                "calibrated thresholds need to know model and method: make the attributor with build_method, "
                "of a model that has a ClipSpec"
            )
        try:
            options = json.loads(json.dumps(_all_options(info["method"], info["options"])))
        except TypeError as error:
            raise InputError(f"{info['method']} with these options cannot be calibrated: {error}") from None
        return cls(info["model"], _weights(info, attributor.model), info["method"], options, info["clip_spec"])

    def difference(self, other: RelevanceSource) -> str | None:
        """Say in which field another source differs first, and how; None where it is the same."""
        for field in fields(self):
            mine, others = getattr(self, field.name), getattr(other, field.name)
            if _without_none(mine) != _without_none(others):
                return f"{field.name.replace('_', ' ')}, {_short(mine)}, not {_short(others)}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return asdict(self)


def _all_options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    # A default that changes in a later version must not pass for the old one.
    parameters = list(inspect.signature(METHODS[method].build).parameters.values())[1:]
    return {parameter.name: given.get(parameter.name, parameter.default) for parameter in parameters}


def _without_none(value: Any) -> Any:
    # An option that is None is not given, no more than one that an earlier version did not have.
    return {key: one for key, one in value.items() if one is not None} if isinstance(value, Mapping) else value


def _weights(info: Mapping[str, Any], model: nn.Module) -> str:
    if info["weights_sha256"] is not None:
        return str(info["weights_sha256"])
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"{info['weights'] or 'unnamed'}, values {digest.hexdigest()}"


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value if len(value) <= 33 else f"{value[:32]}…"
    return json.dumps(value)
