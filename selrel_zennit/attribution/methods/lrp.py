"""Layer-wise relevance propagation: deep Taylor decomposition with its relatives, and Zennit's composites.

Relevance starts with what the caller gives, 1 at the target and 0 elsewhere as ``one_hot`` makes it, not the logit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from zennit.composites import EpsilonAlpha2Beta1, EpsilonPlus, MixedComposite
from zennit.core import Composite
from zennit.rules import Epsilon
from zennit.types import Convolution

from ...canonizers.attention import AttentionCanonizer, has_attention
from ...canonizers.batch_norm import VideoCanonizer
from ...clips.spec import ClipSpec
from ...composites import DTD, AttnLRPEpsilonPlus, DTDEpsilonHead, HeadComposite
from ...errors import InputError
from ...network.paths import named_layer
from ...stems import EpsilonGammaBoxAsItRuns
from .gradient import Gradient


def dtd(model: nn.Module, pool: str = "winner") -> Gradient:
    """Return selective relevance's own baseline. The box of z^B is that of ``model.spec``.

    ``pool`` says where a max pool sends relevance: to the "winner", or to all in "proportional" shares; see DTD.
    Raises InputError for another pool, and where the model has no ClipSpec.
    """
    return Gradient(model, DTD(*_box(model, "dtd"), pool=pool, canonizers=[VideoCanonizer()]))


def dtd_epsilon_head(model: nn.Module, epsilon: float = 1e-6, head: str | None = None) -> Gradient:
    """Return DTD that sees the class. ``head`` names the class layer (default: what gives the logits).

    Raises InputError where the model has no ClipSpec or no such layer; when called, for a layer that does not give the
    logits.
    """
    named_layer(model, head)
    low, high = _box(model, "dtd_epsilon_head")
    return Gradient(model, DTDEpsilonHead(low, high, epsilon=epsilon, head=head, canonizers=[VideoCanonizer()]))


AttrOutputFn = Callable[[torch.Tensor], torch.Tensor]


class Contrastive(Gradient):
    """LRP of a class against the mean of the others: relevance starts with 1 at the target and −1/(K−1) elsewhere.

    The rules are linear in the relevance, so one backward pass gives the target's map minus the mean of the other
    classes' maps, exactly. What all classes have in common cancels. The map is signed and sums to 0.

    The output attribution is given as for any attributor, and turned into the contrast here: A becomes
    A_c − Σ_{k≠c} A_k ÷ (K−1). Raises InputError for a model with a single class.

    Source: Gu et al. 2018, arXiv 1812.02100 (CLRP, the dual concept made of the other classes), without the final
    max(0, ·).
    """

    def forward(self, input: torch.Tensor, attr_output_fn: AttrOutputFn) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B,K], relevance [B,3,T,H,W])."""

        def against_others(logits: torch.Tensor) -> torch.Tensor:
            if logits.shape[1] < 2:
                raise InputError("a model with one class has no others to contrast it with; use dtd")
            given = attr_output_fn(logits)
            return given - (given.sum(1, keepdim=True) - given) / (logits.shape[1] - 1)

        output, relevance = super().forward(input, against_others)
        return output, relevance


def dtd_contrastive(model: nn.Module, pool: str = "winner") -> Contrastive:
    """Return DTD of a class against the others; ``pool`` as for dtd. Raises InputError as dtd does."""
    return Contrastive(model, DTD(*_box(model, "dtd_contrastive"), pool=pool, canonizers=[VideoCanonizer()]))


def lrp_epsilon_plus(
    model: nn.Module, epsilon: float = 1e-6, zero_params: str | None = None, gamma: float | None = None
) -> Gradient:
    """Return Zennit's EpsilonPlus. ``zero_params="bias"`` drops the biases, which Zennit keeps by default.

    On torchvision's video transformers it is AttnLRPEpsilonPlus, which has rules for attention and z⁺ in the layers of
    each token; ``gamma`` takes the γ-rule there instead. Raises InputError for ``gamma`` on any other network.
    """
    if has_attention(model):
        canonizers = [AttentionCanonizer(), VideoCanonizer()]
        return Gradient(model, AttnLRPEpsilonPlus(epsilon, 1e-6, zero_params, canonizers, gamma))
    if gamma is not None:
        raise InputError(
            "lrp_epsilon_plus takes gamma for networks with attention alone: use lrp_epsilon_gamma_box here"
        )
    composite = EpsilonPlus(epsilon=epsilon, zero_params=zero_params)
    return Gradient(model, _epsilon_head(model, composite, epsilon, zero_params))


def lrp_epsilon_gamma_box(
    model: nn.Module, epsilon: float = 1e-6, gamma: float = 0.25, zero_params: str | None = None
) -> Gradient:
    """Return Zennit's EpsilonGammaBox with the box of ``model.spec``; ``zero_params="bias"`` drops the biases.

    Raises InputError where the model has no ClipSpec.
    """
    low, high = _box(model, "lrp_epsilon_gamma_box")
    composite = EpsilonGammaBoxAsItRuns(low, high, epsilon=epsilon, gamma=gamma, zero_params=zero_params)
    return Gradient(model, _epsilon_head(model, composite, epsilon, zero_params))


def lrp_alpha2_beta1(model: nn.Module, epsilon: float = 1e-6, zero_params: str | None = None) -> Gradient:
    """Return Zennit's EpsilonAlpha2Beta1. ``zero_params="bias"`` drops the biases, which Zennit keeps by default."""
    composite = EpsilonAlpha2Beta1(epsilon=epsilon, zero_params=zero_params)
    return Gradient(model, _epsilon_head(model, composite, epsilon, zero_params))


def _epsilon_head(model: nn.Module, composite: Composite, epsilon: float, zero_params: str | None) -> Composite:
    """Return a composite of Zennit's with the video canonizers, and the Epsilon rule in a class layer of any kind.

    Zennit tells layers by their type. In a network whose class layer is a convolution, as that of S3D and I3D is, it
    would get the rule of the features.
    """
    canonizers = [VideoCanonizer()]
    layers = [module for module in model.modules() if isinstance(module, Convolution | nn.Linear)]
    if not layers:
        return MixedComposite([composite], canonizers)
    return MixedComposite([HeadComposite(Epsilon(epsilon=epsilon, zero_params=zero_params)), composite], canonizers)


def _box(model: nn.Module, method: str) -> tuple[torch.Tensor, torch.Tensor]:
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ClipSpec):
        needs = f"{method} needs the bounds of valid input"
        raise InputError(
            f"{needs}: set model.spec = ClipSpec(…), or use load_model", command=f"{needs}: give --clip-spec FILE"
        )
    low, high = (torch.from_numpy(np.array(bound)) for bound in spec.bounds())
    return low, high
