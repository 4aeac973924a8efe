"""Composites of any origin, with what a video network needs: canonizers, and a rule for the sums they make."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

from torch import nn
from zennit.canonizers import Canonizer, CompositeCanonizer, MergeBatchNorm
from zennit.composites import LayerMapComposite, MixedComposite, NameMapComposite
from zennit.core import Composite
from zennit.layer import Sum
from zennit.rules import Norm, Pass
from zennit.types import BatchNorm

from ..canonizers.batch_norm import VideoCanonizer
from ..errors import InputError
from ..network.coverage import is_guided
from ..text import close_names


class Completed(MixedComposite):
    """A composite with what it lacks on video networks; itself it is neither changed nor registered.

    Where its rules hand down relevance, VideoCanonizer is added, unless it is there; sums that it gives no rule take
    Zennit's Norm, batch norms Pass, as in Zennit's own composites. Canonizers of its own run first. Zennit's merges of
    batch norms are left out: VideoCanonizer merges by what the network computes, not by the order of registration, and
    nothing is merged twice. A composite that changes gradients at ReLUs alone, as GuidedBackprop does, gets neither.

    ``shape`` is that of a clip without the batch, by default ``model.spec.shape``. Registering raises InputError for a
    network of which no module gets a rule, or that lacks a module which the composite names.
    """

    def __init__(self, composite: Composite, shape: tuple[int, ...] | None = None) -> None:
        super().__init__([composite])
        self.completed = composite
        self.canonizers = _without_merges(composite.canonizers)
        self.added: list[tuple[Any, Any]] = []
        if not _guided(composite):
            self.added = [(Sum, Norm()), (BatchNorm, Pass())]
            self.composites = [composite, LayerMapComposite(self.added)]
            if not any(isinstance(one, VideoCanonizer) for one in _all_canonizers(self)):
                self.canonizers.append(VideoCanonizer(shape))

    def register(self, module: nn.Module) -> None:
        """Register it on a network; see the class."""
        # Canonizers of the user's own may make modules that have names and rules.
        if all(isinstance(one, VideoCanonizer) for one in self.canonizers):
            _check_names(self.completed, dict(module.named_modules()))
            context: dict[str, Any] = {}
            rules = [self.completed.module_map(context, name, part) for name, part in module.named_modules()]
            if all(rule is None for rule in rules):
                raise InputError(
                    f"{type(self.completed).__name__} gives no module of the network a rule, so that its relevance "
                    "would be the gradient"
                )
        super().register(module)


def completed(composite: Composite, shape: tuple[int, ...] | None = None) -> Composite:
    """Return ``composite`` where it lacks nothing, else a Completed one; ``shape`` as there.

    Raises InputError for a composite that is registered on a network, whose hooks would count twice.
    """
    if composite.handles:
        raise InputError(
            f"{type(composite).__name__} is registered on a network: leave its with block, or call its remove(), first"
        )
    canonizers = list(_all_canonizers(composite))
    merges = any(isinstance(one, MergeBatchNorm) for one in canonizers)
    canonized = any(isinstance(one, VideoCanonizer) for one in canonizers)
    ruled = all(any(isinstance(one, types) for types in _types(composite)) for one in (Sum(), nn.BatchNorm3d(1)))
    complete = not merges and (_guided(composite) or (canonized and ruled))
    return composite if complete or isinstance(composite, Completed) else Completed(composite, shape)


def _guided(composite: Composite) -> bool:
    """Say whether all that a composite has is rules for gradients; one that is a function has others."""
    rules = list(mapped_rules(composite))
    return bool(rules) and all(is_guided(rule) for _, rule in rules)


def mapped_rules(composite: Composite) -> Iterator[tuple[Any, Any]]:
    """Yield what a composite maps to its rules, and the rules."""
    for name in ("first_map", "layer_map", "name_map"):
        yield from getattr(composite, name, None) or ()
    for one in getattr(composite, "composites", ()):
        yield from mapped_rules(one)


def _types(composite: Composite) -> list[Any]:
    return [types for types, _ in mapped_rules(composite) if not isinstance(types, list | str)]


def _all_canonizers(composite: Composite) -> Iterator[Canonizer]:
    """Yield a composite's canonizers, and those inside of them."""
    waiting = list(composite.canonizers)
    for one in waiting:
        yield one
        waiting += getattr(one, "canonizers", ())


def _without_merges(canonizers: list[Canonizer]) -> list[Canonizer]:
    kept = []
    for one in canonizers:
        if isinstance(one, MergeBatchNorm):
            continue
        if isinstance(one, CompositeCanonizer) and type(one).apply is CompositeCanonizer.apply:
            one, inside = copy(one), one.canonizers
            one.canonizers = _without_merges(inside)
            if not one.canonizers:
                continue
        kept.append(one)
    return kept


def _check_names(composite: Composite, modules: dict[str, nn.Module]) -> None:
    for one in getattr(composite, "composites", ()):
        _check_names(one, modules)
    if isinstance(composite, NameMapComposite):
        for name in (name for names, _ in composite.name_map or () for name in names):
            if name not in modules and "canonizer_" not in name:
                close = close_names(name, modules)
                raise InputError(f"the composite has a rule for {name!r}, which no module is called{close}")
