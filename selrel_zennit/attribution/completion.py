"""Composites of any origin, with what a video network needs: canonizers, and a rule for the sums they make."""

from __future__ import annotations

from copy import copy
from typing import Any

from torch import nn
from zennit.canonizers import Canonizer, CompositeCanonizer, MergeBatchNorm
from zennit.composites import LayerMapComposite, MixedComposite, NameMapComposite
from zennit.core import Composite, Hook
from zennit.layer import Sum
from zennit.rules import Norm, ReLUBetaSmooth, ReLUDeconvNet, ReLUGuidedBackprop

from ..attention import AttentionCanonizer
from ..canonizers import VideoCanonizer
from ..errors import InputError
from ..text import close_names
from .fit import check_rules

# Rules that change a gradient at ReLUs, and hand on no relevance that a sum could share.
GRADIENT_RULES = (ReLUBetaSmooth, ReLUDeconvNet, ReLUGuidedBackprop)


class Completed(MixedComposite):
    """A composite with what it lacks on video networks; itself it is neither changed nor registered.

    Where its rules hand down relevance, VideoCanonizer is added, unless it is there, and sums that it gives no rule
    take Zennit's Norm. Canonizers of its own run first. Zennit's merges of batch norms are left out: VideoCanonizer
    merges by what the network computes, not by the order of registration, and nothing is merged twice.
    """

    def __init__(self, composite: Composite, rules: bool) -> None:
        added = [LayerMapComposite([(Sum, Norm())])] if rules else []
        super().__init__([composite, *added])
        self.completed = composite
        self.canonizers = _without_merges(composite.canonizers)
        if rules and not any(isinstance(one, VideoCanonizer) for one in self.canonizers):
            self.canonizers.append(VideoCanonizer())


def completed(composite: Composite, model: nn.Module) -> Composite:
    """Return ``composite`` where ``model`` needs nothing more, else a Completed one.

    Raises InputError for a composite that is registered on a network already, gives no module of ``model`` a rule,
    names modules that do not exist, or has no rule for kinds of layers that no gradient stands in for.
    """
    name = type(composite).__name__
    if composite.handles:
        raise InputError(f"{name} is registered on a network: leave its with block, or call its remove(), first")
    _check_names(composite, model)
    context: dict[str, Any] = {}
    given: dict[nn.Module, Hook] = {}
    for path, module in model.named_modules():
        rule = composite.module_map(context, path, module)
        if rule is not None:
            given[module] = rule
    if not given and not composite.canonizers:
        raise InputError(f"{name} gives no module of the network a rule, so that its relevance would be the gradient")
    merges = len(_without_merges(composite.canonizers)) != len(composite.canonizers)
    if all(isinstance(rule, GRADIENT_RULES) or type(rule).__name__ == "GuidedReLU" for rule in given.values()):
        return Completed(composite, rules=False) if merges else composite
    if not any(isinstance(one, AttentionCanonizer) for one in composite.canonizers):
        check_rules(name, model, given)
    canonized = any(isinstance(one, VideoCanonizer) for one in composite.canonizers)
    summed = composite.module_map(context, "canonizer_sum_0.sum", Sum()) is not None
    return composite if canonized and summed and not merges else Completed(composite, rules=True)


def _without_merges(canonizers: list[Canonizer]) -> list[Canonizer]:
    """Return the canonizers without Zennit's merges of batch norms, those inside others too."""
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


def _check_names(composite: Composite, model: nn.Module) -> None:
    """Raise InputError for a name that no module has. Canonizers of the user's own may add modules."""
    for one in getattr(composite, "composites", ()):
        _check_names(one, model)
    if isinstance(composite, NameMapComposite) and not composite.canonizers:
        modules = dict(model.named_modules())
        for names, _ in composite.name_map or ():
            for name in names:
                if name not in modules and "canonizer_" not in name:
                    close = close_names(name, modules)
                    raise InputError(f"the composite has a rule for {name!r}, which no module is called{close}")
