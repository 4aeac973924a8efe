"""Composites for video networks, registered in Zennit's COMPOSITES."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from zennit.canonizers import Canonizer
from zennit.composites import ExcitationBackprop, MixedComposite, layer_map_base, register_composite
from zennit.core import Composite, Hook
from zennit.layer import Sum
from zennit.rules import Epsilon, Gamma, Pass, ZBox, ZPlus
from zennit.types import Activation, BatchNorm, Convolution, Linear, MaxPool

from .canonizers.attention import Product, Softmax
from .errors import InputError
from .network.paths import class_layers
from .rules import BilinearEpsilon, ClassToken, ProportionalMaxPool, SoftmaxTaylor, SumByMagnitude, ZPlusContrast
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


@register_composite("attnlrp_epsilon_plus")
class AttnLRPEpsilonPlus(Composite):
    """AttnLRP: EpsilonPlus for networks with attention that AttentionCanonizer takes apart.

    The rules are those of Achtibat et al. 2024, arXiv 2402.05602, but for the last: a product of two matrices, both
    made of the clip, takes the ε-rule, half of the relevance to each factor; a softmax its Taylor expansion, whose
    constant term takes a share, so that relevance is not conserved there; layer norms and activations the identity; the
    class layer and means the ε-rule; layers inside the network and sums by default rules that never enlarge Σ|R|. The
    ε-rule multiplies Σ|R| by up to Σ|z_i| ÷ |Σ z_i| in every layer. With random weights, over the layers of swin3d_t,
    that comes to 1e8 where the sum should be 1: in single precision the sum is rounding error.

    Convolutions take z⁺, and so do linear layers, which are convolutions of size 1 over the tokens; sums take
    SumByMagnitude. The class layer ``head`` (default: what gives the logits) and average pools take the ε-rule.
    ``gamma`` puts the γ-rule in the place of z⁺ behind the first convolution (0.05 to 1 for images; 0 is the ε-rule),
    and the ε-rule in sums, as the paper has it: relevance then grows where contributions cancel. ``stabilizer`` is that
    of z⁺ and γ. ``zero_params="bias"`` drops the biases, those of positions and windows too. Raises InputError for a γ
    that is no number of 0 or more, and for a ``head`` that does not exist or does not give the logits.

    So many z⁺ layers make the map blind to the class: in swin3d_t with random weights, maps of different classes have
    cosine 1.000 (8 frames of 64×64). γ = 0.25 tells them better apart, and Σ|R| stays near 1 there;
    in narrower networks it can grow to 10² and more.
    """

    def __init__(
        self,
        epsilon: float = 1e-6,
        stabilizer: float = 1e-6,
        zero_params: Any = None,
        canonizers: list[Canonizer] | None = None,
        gamma: float | None = None,
        head: str | None = None,
    ) -> None:
        from torchvision.models.video.mvit import PositionalEncoding

        number = isinstance(gamma, int | float) and not isinstance(gamma, bool)
        if gamma is not None and not (number and 0 <= gamma < math.inf):
            raise InputError(f"gamma must be 0 or more, or None for z⁺, got {gamma!r}")
        super().__init__(module_map=self.mapping, canonizers=canonizers)
        self.first = ZPlus(stabilizer=stabilizer, zero_params=zero_params)
        self.epsilon = Epsilon(epsilon=epsilon, zero_params=zero_params)
        self.head = head
        self.inner: Hook = self.epsilon if gamma == 0 else self.first
        if gamma:
            self.inner = Gamma(gamma, stabilizer=stabilizer, zero_params=zero_params)
        self.layer_map: list[tuple[Any, Hook]] = [
            (Product, BilinearEpsilon(epsilon, zero_params)),
            (Softmax, SoftmaxTaylor()),
            (nn.LayerNorm, Pass()),
            (PositionalEncoding, ClassToken()),
            *([(Sum, SumByMagnitude())] if gamma is None else []),
            *layer_map_base(epsilon),
            (Linear, self.inner),
        ]

    def mapping(self, ctx: dict[str, Any], name: str, module: nn.Module) -> Hook | None:
        """Return the rule for a module, None where there is none. Zennit begins with the whole model, named ""."""
        if not name:
            layers = any(isinstance(one, Linear) for one in module.modules())
            ctx["heads"] = class_layers(module, self.head) if self.head is not None or layers else []
        if module in ctx["heads"]:
            return self.epsilon
        if isinstance(module, Convolution) and not ctx.get("first"):
            ctx["first"] = True
            return self.first
        return next((hook for types, hook in self.layer_map if isinstance(module, types)), None)
