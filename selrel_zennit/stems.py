"""z^B where the clip enters: in every convolution that sees the clip, with the box as that convolution sees it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import nn
from zennit.composites import EpsilonGammaBox, LayerMapComposite, SpecialFirstLayerMapComposite
from zennit.core import Hook
from zennit.rules import AlphaBeta, Gamma, ZBox, ZPlus
from zennit.types import Convolution

from .errors import InputError
from .network.copying import own_copy
from .network.coverage import Unseen, rule_of
from .network.kinds import eagerly
from .network.paths import paths_of

Box = tuple[torch.Tensor, torch.Tensor]


class FirstAsItRuns(SpecialFirstLayerMapComposite):
    """A composite whose special rule goes to the layers that see the clip, by what runs.

    Zennit's takes the layer that is registered first, and one alone. ``box`` is the z^B rule within ``first_map``: it
    is given the bounds that ``low`` and ``high`` have become where its layer sees them, when a network scales or shifts
    its clip. A network without a ``spec``, which says what clip to run it on, is taken as Zennit takes it.
    """

    low: torch.Tensor | float
    high: torch.Tensor | float
    box: Hook
    box_settings: dict[str, Any]

    def mapping(self, ctx: dict[str, Any], name: str, module: nn.Module) -> Hook | None:
        """Return the rule for a module, None where there is none. Zennit begins with the whole model, named ""."""
        if not name:
            ctx["boxes"] = boxes_of(module, self.low, self.high) if getattr(module, "spec", None) is not None else None
        boxes = ctx.get("boxes")
        if boxes is None:
            rule: Hook | None = super().mapping(ctx, name, module)
            return rule
        if module in boxes:
            for types, hook in self.first_map:
                if isinstance(module, types):
                    low, high = boxes[module]
                    return ZBox(low=low, high=high, **self.box_settings) if hook is self.box else hook
        return LayerMapComposite.mapping(self, ctx, name, module)


class EpsilonGammaBoxAsItRuns(FirstAsItRuns, EpsilonGammaBox):
    """Zennit's EpsilonGammaBox with z^B in every convolution that sees the clip."""

    def __init__(self, low: Any, high: Any, stabilizer: Any = 1e-6, zero_params: Any = None, **options: Any) -> None:
        EpsilonGammaBox.__init__(self, low, high, stabilizer=stabilizer, zero_params=zero_params, **options)
        self.low, self.high, self.box = low, high, self.first_map[-1][1]
        self.box_settings = {"stabilizer": stabilizer, "zero_params": zero_params}


def boxes_of(model: nn.Module, low: torch.Tensor | float, high: torch.Tensor | float) -> dict[nn.Module, Box]:
    """Return the convolutions that see the clip, each with the least and greatest input that it can be given.

    ``low`` and ``high`` are those of the clip. What lies between is scaling, shifting, averaging and moving; both clips
    are sent through it. Where the bounds are the same at all places, they have the shape [1,C,1,…].

    Raises InputError where no layer sees the clip, and what ``dry_run`` raises.
    """
    stems = paths_of(model).stems
    if not stems:
        raise InputError(
            "no layer of the network sees the clip itself, so that z^B has no place: its first layer is no module, or "
            "something that bends values lies before it; lrp_epsilon_plus needs no bounds, gradient no rules"
        )
    wanted = [stem for stem in stems if isinstance(stem, Convolution)]
    if not wanted:
        return {}
    first, second = (_inputs(model, wanted, bound) for bound in (low, high))
    return {
        stem: (_narrowed(torch.minimum(a, b)), _narrowed(torch.maximum(a, b)))
        for stem, a, b in zip(wanted, first, second, strict=True)
    }


def misplaced_boxes(model: nn.Module) -> list[Unseen]:
    """Return where the rules that are registered have z^B in another layer than one that sees the clip.

    A composite of Zennit's gives it to the convolution that is registered first, and to no other stem. What is neither
    here nor there: other rules of a user's own choice in another stem.
    """
    rules = {module: rule for module in model.modules() if (rule := rule_of(module)) is not None}
    boxed = [module for module, rule in rules.items() if isinstance(rule, ZBox)]
    if not boxed or getattr(model, "spec", None) is None:
        return []
    stems = [stem for stem in paths_of(model).stems if isinstance(stem, Convolution)]
    names = {module: name for name, module in model.named_modules()}
    wrong = [module for module in boxed if module not in stems]
    plain = [stem for stem in stems if isinstance(rules.get(stem), AlphaBeta | Gamma | ZPlus)]
    return [
        *(Unseen("z^B", names[one], "stands in a layer that does not see the clip") for one in wrong),
        *(Unseen("convolution", names[one], "sees the clip, and its rule is not z^B") for one in plain),
    ]


class _Enough(Exception):
    """All stems have been given what they take."""


def _inputs(model: nn.Module, stems: list[nn.Module], bound: torch.Tensor | float) -> list[torch.Tensor]:
    """Return what each stem is given of a clip that holds nothing but ``bound``."""
    made = own_copy(model)
    parameter = next(p for p in made.parameters() if p.is_floating_point())
    value = torch.as_tensor(bound).to(parameter)
    if value.ndim == 4:
        value = value.unsqueeze(2)
    shape: tuple[int, ...] = model.spec.shape  # type: ignore[assignment]
    clip = value.expand(1, *shape).clone()
    taken: dict[nn.Module, torch.Tensor] = {}

    def take(stem: nn.Module) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
            taken[stem] = args[0].detach().clone()
            if len(taken) == len(stems):
                raise _Enough

        return keep

    for module, copied in zip(model.modules(), made.modules(), strict=True):
        if module in stems:
            # Behind hooks of the user's, which may shift what the layer is given.
            copied.register_forward_pre_hook(take(module))
    with eagerly(), torch.inference_mode(False), torch.no_grad(), suppress(_Enough):
        made(clip)
    return [taken[stem] for stem in stems]


def _narrowed(bound: torch.Tensor) -> torch.Tensor:
    """Return a bound [B,C,…] without the axes along which it is the same everywhere; frames in the batch may be any."""
    axes = [axis for axis in range(bound.ndim) if axis != 1]
    one = bound
    for axis in axes:
        one = one.narrow(axis, 0, 1)
    return one.clone() if bool((bound == one).all()) else bound
