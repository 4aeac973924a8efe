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


class Completed(MixedComposite):
    """A composite with what it lacks on video networks; itself it is neither changed nor registered.

    Where its rules hand down relevance, VideoCanonizer is added, unless it is there, and sums that it gives no rule
    take Zennit's Norm; where they change gradients at ReLUs, ReLUs that are no modules are refused. Canonizers of its
    own run first. Zennit's merges of batch norms are left out: VideoCanonizer merges by what the network computes, not
    by the order of registration, and nothing is merged twice.
    """

    def __init__(self, composite: Composite, rules: bool) -> None:
        from .guided import RefuseOtherReLUs

        added = [LayerMapComposite([(Sum, Norm())])] if rules else []
        super().__init__([composite, *added])
        self.completed = composite
        self.canonizers = _without_merges(composite.canonizers)
        needed = VideoCanonizer if rules else RefuseOtherReLUs
        if not _has(composite, needed):
            self.canonizers.append(needed())


def completed(composite: Composite, model: nn.Module) -> Composite:
    """Return ``composite`` where ``model`` needs nothing more, else a Completed one.

    Raises InputError for a composite that is registered on a network already, gives no module of ``model`` a rule,
    names modules that do not exist, or has no rule for kinds of layers that no gradient stands in for.
    """
    from .guided import GuidedReLU

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
    # Rules that change a gradient, and hand on no relevance that a sum could share.
    gradients = (GuidedReLU, ReLUBetaSmooth, ReLUDeconvNet, ReLUGuidedBackprop)
    if given and all(isinstance(rule, gradients) for rule in given.values()):
        return _guided(composite, model, given)
    if not _has(composite, AttentionCanonizer):
        check_rules(name, model, given)
    summed = composite.module_map(context, "canonizer_sum_0.sum", Sum()) is not None
    if summed and _has(composite, VideoCanonizer) and not _has(composite, MergeBatchNorm):
        return composite
    return Completed(composite, rules=True)


def _guided(composite: Composite, model: nn.Module, given: dict[nn.Module, Hook]) -> Composite:
    from .guided import RELUS, RefuseOtherReLUs

    for path, module in model.named_modules():
        if isinstance(module, RELUS) and module not in given:
            raise InputError(
                f"{type(composite).__name__} has no rule for {type(module).__name__} ({path}), and its map would be "
                "the plain gradient there: give it one"
            )
    complete = _has(composite, RefuseOtherReLUs) and not _has(composite, MergeBatchNorm)
    return composite if complete else Completed(composite, rules=False)


def _has(composite: Composite, kind: type) -> bool:
    """Say whether one of a composite's canonizers, those inside others too, is of this kind."""
    canonizers = list(composite.canonizers)
    for one in canonizers:
        if isinstance(one, kind):
            return True
        canonizers += getattr(one, "canonizers", ())
    return False


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
