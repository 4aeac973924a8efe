"""RelevanceSource: which model and method a relevance map comes from, exactly enough to tell two apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn
from zennit.attribution import Attributor

from ..attribution import METHODS
from ..attribution.foreign import as_attributor
from ..attribution.provenance import UNKNOWN, described, label, resolved_options
from ..errors import InputError


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
        """Return whose relevance an attributor gives; one that no method's name stands for is known by its composite.

        Raises InputError for a model without a ClipSpec, and where two composites or options could not be told apart.
        """
        attributor = as_attributor(attributor, attributor.model)
        info = attributor.info
        if info["clip_spec"] is None:
            raise InputError("calibrated thresholds are for one kind of clips: set model.spec = ClipSpec(…)")
        if info["method"] in METHODS:
            options = resolved_options(METHODS[info["method"]].build, info["options"])
        else:
            options = {**info["options"], "composite": described(attributor.composite, exact=True)}
        text = json.dumps(described(options))
        if "<lambda>" in text or "<locals>" in text or UNKNOWN in text:
            raise InputError(
                f"{label(info)} has options that cannot be told from others: give functions that have a name"
            )
        return cls(info["model"], _weights(info, attributor.network), label(info), json.loads(text), info["clip_spec"])

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
