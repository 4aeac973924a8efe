"""A method's name and a model make an attributor."""

from __future__ import annotations

from typing import Any

from torch import nn
from zennit.composites import COMPOSITES

from .. import plugins
from ..errors import InputError
from ..text import close_names
from .base import VideoAttributor
from .fit import check_network, check_rules
from .provenance import provenance, resolved_options
from .table import METHODS


def build_by_name(name: str, model: nn.Module, options: dict[str, Any]) -> VideoAttributor:
    """Return the attributor of a method of METHODS; raises InputError as build_method does."""
    faults = [] if name in METHODS else plugins.load(plugins.METHODS, METHODS, name)
    if name not in METHODS:
        if faults:
            raise InputError(faults[0])
        composite = f"; the composite {name!r} is passed as an object" if name in COMPOSITES else ""
        raise InputError(
            f"no method named {name!r}{close_names(name, METHODS)}; there are {', '.join(METHODS)}{composite}"
        )
    entry = METHODS[name]
    unknown = sorted(set(options) - set(entry.options))
    if unknown:
        known = ", ".join(entry.options) or "none"
        raise InputError(
            f"{name} has no option {unknown[0]!r}{close_names(unknown[0], entry.options)}; its options: {known}"
        )
    check_network(model, name)
    if entry.rules:
        check_rules(name, model)
    attributor = entry.build(model, **options)
    attributor.info = provenance(attributor, model, name, resolved_options(entry.build, options))
    return attributor
