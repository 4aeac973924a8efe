"""Composites for video networks, registered in Zennit's COMPOSITES."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from zennit.composites import ExcitationBackprop, MixedComposite, layer_map_base, register_composite
from zennit.core import Composite, Hook
from zennit.rules import Epsilon, Pass, ZBox, ZPlus
from zennit.types import Activation, BatchNorm, Convolution, Linear, MaxPool

from .errors import InputError
from .paths import class_layers
from .rules import ProportionalMaxPool, ZPlusContrast
from .stems import FirstAsItRuns


@register_composite("dtd")
class DTD(FirstAsItRuns):
    """Deep Taylor decomposition of a ReLU network, as Hiley et al. 2020 apply it to C3D.

    The convolutions that see the clip take the z^B rule with the box of valid inputs; every other convolution and
    every linear layer, the class layer too, takes z⁺ (α1β0). Biases are dropped, which Zennit's rules keep by default.
    ReLU and batch norm pass relevance; sums and average pools share it in proportion. A max pool hands it to the winner
    (its gradient, ``pool="winner"``) or shares it in proportion to the activations (``pool="proportional"``, see
    ProportionalMaxPool). Relevance sums to the initial relevance.

    ``low`` and ``high`` are the least and greatest input in model units, shape [1,3,1,1,1] or anything that broadcasts:
    ``ClipSpec.bounds()``. The other arguments are those of Zennit's composites. Raises InputError for an unknown pool.

    Source: Montavon et al. 2017, §4-5; Hiley et al. 2020, arXiv 2003.14285, §3.
    """

    def __init__(
        self,
        low: torch.Tensor | float,
        high: torch.Tensor | float,
        stabilizer: Any = 1e-6,
        layer_map: list[tuple[Any, Any]] | None = None,
        first_map: list[tuple[Any, Any]] | None = None,
        zero_params: Any = "bias",
        canonizers: list[Any] | None = None,
        pool: str = "winner",
    ) -> None:
        if pool not in ("winner", "proportional"):
            raise InputError(f"pool must be 'winner' or 'proportional', got {pool!r}")
        rule = {"stabilizer": stabilizer, "zero_params": zero_params}
        self.low, self.high, self.box_settings = low, high, rule
        self.box = ZBox(low=low, high=high, **rule)
        shared = [(MaxPool, ProportionalMaxPool())] if pool == "proportional" else []
        super().__init__(
            layer_map=[
                *(layer_map or []),
                *layer_map_base(stabilizer),
                *shared,
                (Convolution, ZPlus(**rule)),
                (Linear, ZPlus(**rule)),
            ],
            first_map=[*(first_map or []), (Convolution, self.box)],
            canonizers=canonizers,
        )


@register_composite("dtd_epsilon_head")
class DTDEpsilonHead(MixedComposite):
    """DTD with the Epsilon rule in the class layer, so that what speaks against a class counts.

    ``head`` names the class layer (default: what gives the logits). ``epsilon`` is that of the Epsilon rule; the other
    arguments are those of DTD, and ``zero_params`` holds for the class layer too.

    Source: Hiley et al. 2020 with the Epsilon rule of Bach et al. 2015, which Montavon et al. 2019, §10.3, advise
    for upper layers.
    """

    def __init__(
        self,
        low: torch.Tensor | float,
        high: torch.Tensor | float,
        epsilon: float = 1e-6,
        head: str | None = None,
        stabilizer: Any = 1e-6,
        zero_params: Any = "bias",
        canonizers: list[Any] | None = None,
    ) -> None:
        super().__init__(
            [
                HeadComposite(Epsilon(epsilon=epsilon, zero_params=zero_params), head),
                DTD(low, high, stabilizer=stabilizer, zero_params=zero_params),
            ],
            canonizers,
        )


@register_composite("excitation_backprop_contrastive")
class ContrastiveExcitationBackprop(MixedComposite):
    """Excitation backprop (MWP), or the contrastive one (cMWP): Zennit's composite, biases dropped.

    Zennit's ExcitationBackprop keeps biases by default and gives activations and batch norms their gradient; here
    relevance passes both, so that it is conserved. On ReLU networks without batch norm the two are the same.
    With ``contrastive``, the class layer ``head`` (default: what gives the logits) takes the difference between its
    weights and its negated weights. The rules are linear in the relevance, so this one pass equals the paper's two
    passes, whichever lower layer they are subtracted at.

    Source: Zhang et al. 2018, arXiv 1608.00507, §3.
    """

    def __init__(
        self,
        contrastive: bool = True,
        head: str | None = None,
        stabilizer: Any = 1e-6,
        zero_params: Any = "bias",
        canonizers: list[Any] | None = None,
    ) -> None:
        rule = {"stabilizer": stabilizer, "zero_params": zero_params}
        excitation = ExcitationBackprop(layer_map=[(Activation, Pass()), (BatchNorm, Pass())], **rule)
        contrast = [HeadComposite(ZPlusContrast(**rule), head)] if contrastive else []
        super().__init__([*contrast, excitation], canonizers)


class HeadComposite(Composite):
    """One rule for the class layer, none for the others: the first part of a MixedComposite.

    ``head`` is the name of the class layer; without it, ``class_layers`` says which it is.
    """

    def __init__(self, rule: Hook, head: str | None = None) -> None:
        super().__init__(module_map=self.mapping)
        self.rule = rule
        self.head = head

    def mapping(self, ctx: dict[str, Any], name: str, module: nn.Module) -> Hook | None:
        """Return the rule for the class layer, else None. Zennit begins with the whole model, named ""."""
        if not name:
            ctx["heads"] = class_layers(module, self.head)
        return self.rule if module in ctx["heads"] else None


def release_hooks(composite: Composite) -> None:
    """Drop what the hooks of a registered composite keep of the last call: tensors, and one handle per layer and call.

    Zennit drops them when the composite is removed; inside a ``with`` block they would pile up with every call.
    """
    for hook in composite.hook_refs:
        hook.stored_tensors.clear()
        hook.tensor_handles.remove()
