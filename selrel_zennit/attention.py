"""Rules for attention: AttnLRP (Achtibat et al. 2024, arXiv 2402.05602) on torchvision's video transformers.

A canonizer takes each attention apart into modules that hooks can see: the products of queries and keys, the softmax,
the products of weights and values. The rules are the paper's but for the last:

- a product of two matrices, both made of the clip: ε-rule, half of the relevance to each factor
- softmax: R_i = x_i (R_i − s_i Σ_j R_j), its Taylor expansion. The expansion's constant term
  takes a share: relevance is not conserved here
- layer norm and element-wise activations: identity
- the class layer and means: ε-rule
- layers inside the network and sums: by default rules that never enlarge Σ|R|, z⁺ as EpsilonPlus has it in convolutions
  (a linear layer that is applied to every token is a convolution of size 1), and shares by magnitude in sums. With
  ``gamma`` the paper's: γ-rule, which it takes for images, or ε-rule, and the ε-rule in sums

The ε-rule multiplies Σ|R| by up to Σ|z_i| ÷ |Σ z_i| in every layer. With random weights, over the layers of swin3d_t,
that comes to 1e8 where the sum should be 1: in single precision the sum is rounding error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from zennit.canonizers import Canonizer
from zennit.composites import layer_map_base, register_composite
from zennit.core import Composite, Hook, Stabilizer
from zennit.layer import Sum
from zennit.rules import Epsilon, Gamma, Pass, ZPlus
from zennit.types import Convolution, Linear

from .errors import InputError
from .function_canonizer import register_each
from .functions import ResidualSum
from .paths import class_layers

Tensor = torch.Tensor


class Product(nn.Module):
    """The product of two matrices [..., M, N] and [..., N, K] of the clip, and what is added to it.

    ``added`` is a linear function of the first factor, ``constant`` depends on no clip; both are set for each run.
    """

    def __init__(self, scale: float = 1.0, transposed: bool = False) -> None:
        super().__init__()
        self.scale, self.transposed = scale, transposed
        self.added: Callable[[Tensor], Tensor] | None = None
        self.constant: Callable[[Tensor], Tensor] | None = None

    def product(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the product alone."""
        first = first if self.scale == 1 else first * self.scale
        product: Tensor = first.matmul(second.transpose(-2, -1) if self.transposed else second)
        return product

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return product + added + constant."""
        output = self.product(first, second)
        if self.added is not None:
            output = output + self.added(first)
        return output if self.constant is None else self.constant(output)


class Softmax(nn.Module):
    """The softmax over the last axis, inside an attention."""

    def forward(self, scores: Tensor) -> Tensor:
        """Return weights that sum to 1."""
        return scores.softmax(-1)


class BilinearEpsilon(Hook):
    """ε-rule for a product of two matrices O = A·V: half of the relevance goes to each factor.

    R(A)_ji = Σ_p A_ji V_ip R_jp ÷ (2 O_jp + ε), and so for V. What is added to the product and linear in A alone hands
    its whole share to A; a constant keeps its share, as a bias does, or with ``zero_params="bias"`` has none.

    Source: Achtibat et al. 2024.
    """

    def __init__(self, epsilon: Any = 1e-6, zero_params: Any = None) -> None:
        super().__init__()
        self.epsilon, self.zero_params = epsilon, zero_params
        self.stabilizer = Stabilizer.ensure(epsilon)

    def forward(self, module: Any, input: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep the factors, and what is added to their product."""
        self.stored_tensors["first"], self.stored_tensors["second"] = input
        self.stored_tensors["output"] = output.detach()
        self.stored_tensors["added"] = module.added

    def backward(self, module: Any, grad_input: Any, grad_output: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return the relevance of both factors."""
        added = self.stored_tensors["added"]
        with torch.enable_grad():
            first, second = (self.stored_tensors[name].detach().requires_grad_() for name in ("first", "second"))
            product = module.product(first, second)
            terms = [product] if added is None else [product, added(first)]
            with_bias = "bias" not in (self.zero_params or ())
            output = self.stored_tensors["output"] if with_bias else sum(term.detach() for term in terms)
            share = grad_output[0] / self.stabilizer(2 * output)
            gradients = torch.autograd.grad(terms, (first, second), [share, 2 * share][: len(terms)])
        return first.detach() * gradients[0], second.detach() * gradients[1]

    def copy(self) -> BilinearEpsilon:
        """Return one like this for another module."""
        return BilinearEpsilon(self.epsilon, self.zero_params)


class SoftmaxTaylor(Hook):
    """Softmax by its first-order Taylor expansion: R_i = x_i (R_i − s_i Σ_j R_j).

    Source: Achtibat et al. 2024.
    """

    def forward(self, module: nn.Module, input: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep scores and weights."""
        self.stored_tensors["scores"], self.stored_tensors["weights"] = input[0].detach(), output.detach()

    def backward(self, module: nn.Module, grad_input: Any, grad_output: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Return the relevance of the scores."""
        scores, weights = self.stored_tensors["scores"], self.stored_tensors["weights"]
        relevance = grad_output[0]
        return (scores * (relevance - weights * relevance.sum(-1, keepdim=True)),)


class SumByMagnitude(Hook):
    """Rule for zennit.layer.Sum: each summand's share is its magnitude, R_i = R |x_i| ÷ Σ_k |x_k|.

    The ε-rule shares by x_i ÷ Σ_k x_k, which grows without bound where summands cancel. Equal shares where all are 0.
    """

    def forward(self, module: nn.Module, input: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep the summands."""
        self.stored_tensors["summands"] = input[0].detach()

    def backward(self, module: Any, grad_input: Any, grad_output: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Return the relevance of the summands."""
        size = self.stored_tensors["summands"].abs()
        size = torch.where(size.amax(module.dim, keepdim=True) > 0, size, 1.0)
        return (size / size.sum(module.dim, keepdim=True) * grad_output[0].unsqueeze(module.dim),)


class ClassToken(Hook):
    """A class token, put before the others, keeps the relevance that reaches it: it is a parameter, as a bias is."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
        """Return the relevance of the other tokens."""
        return tuple(grad_input)


@register_composite("attnlrp_epsilon_plus")
class AttnLRPEpsilonPlus(Composite):
    """AttnLRP: EpsilonPlus for networks with attention that AttentionCanonizer takes apart; see the module.

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


class AttentionCanonizer(Canonizer):
    """Takes the attentions of torchvision's video Swin and MViT apart into modules; values stay what they are.

    The modules are named ``canonizer_scores``, ``canonizer_softmax``, ``canonizer_mix`` and ``canonizer_sum``.
    """

    def __init__(self) -> None:
        self.module: nn.Module | None = None
        self.names: list[str] = []

    def apply(self, root_module: nn.Module) -> list[Canonizer]:
        """Take all attentions apart; return what undoes it."""
        modules = [module for module in root_module.modules() if "forward" not in vars(module)]
        found = ((module, _forward_of(module)) for module in modules)
        return register_each((AttentionCanonizer(), (module, new)) for module, new in found if new is not None)

    def register(self, module: Any, forward: Callable[..., Any]) -> None:
        """Let one attention run its modules from now on."""
        self.module = module
        channels = module.head_dim if forward is _multiscale else module.qkv.in_features // module.num_heads
        parts = {
            "canonizer_scores": Product(module.scaler if forward is _multiscale else channels**-0.5, transposed=True),
            "canonizer_softmax": Softmax(),
            "canonizer_mix": Product(),
        }
        if forward is _multiscale:
            parts["canonizer_sum"] = ResidualSum()
        for name, part in parts.items():
            self.names.append(name)
            module.add_module(name, part.train(module.training))
        object.__setattr__(module, "forward", forward.__get__(module))

    def remove(self) -> None:
        """Give the attention its own forward back."""
        if self.module is not None:
            vars(self.module).pop("forward", None)
            for name in self.names:
                delattr(self.module, name)
            self.module = None


def has_attention(model: nn.Module) -> bool:
    """Say whether the network has an attention that AttentionCanonizer takes apart."""
    return any(_forward_of(module) is not None for module in model.modules())


def _forward_of(module: nn.Module) -> Callable[..., Any] | None:
    from torchvision.models.video.mvit import MultiscaleAttention
    from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

    if type(module) is ShiftedWindowAttention3d:
        return _shifted_window
    return _multiscale if type(module) is MultiscaleAttention else None


def _shifted_window(self: Any, x: Tensor) -> Tensor:
    """ShiftedWindowAttention3d.forward, operation by operation, with modules for those that need a rule."""
    from torchvision.models.video import swin_transformer as torchvision

    sizes = list(x.shape[1:4])
    window, shift = torchvision._get_window_and_shift_size(self.shift_size.copy(), sizes, self.window_size.copy())
    position = self.get_relative_position_bias(window)
    pads = torchvision._compute_pad_size_3d(tuple(sizes), tuple(window))
    values = functional.pad(x, (0, 0, 0, pads[2], 0, pads[1], 0, pads[0]))
    batch, *padded, channels = values.shape
    shifted = sum(shift) > 0
    if shifted:
        values = values.roll([-step for step in shift], (1, 2, 3))
    t, h, w = (size // width for size, width in zip(padded, window, strict=True))
    values = values.view(batch, t, window[0], h, window[1], w, window[2], channels).permute(0, 1, 3, 5, 2, 4, 6, 7)
    values = values.reshape(batch * t * h * w, window[0] * window[1] * window[2], channels)
    count, length = values.shape[:2]

    heads = self.qkv(values).reshape(count, length, 3, self.num_heads, channels // self.num_heads)
    query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
    mask = torchvision._compute_attention_mask_3d(values, tuple(padded), window, shift) if shifted else None

    def constant(scores: Tensor) -> Tensor:
        scores = scores + position
        if mask is not None:
            apart = scores.view(batch, t * h * w, self.num_heads, length, length) + mask.unsqueeze(1).unsqueeze(0)
            scores = apart.view(-1, self.num_heads, length, length)
        return scores

    self.canonizer_scores.constant = constant
    try:
        weights = self.canonizer_softmax(self.canonizer_scores(query, key))
    finally:
        self.canonizer_scores.constant = None
    mixed = self.canonizer_mix(weights, value).transpose(1, 2).reshape(count, length, channels)
    values = self.proj(mixed).view(batch, t, h, w, *window, channels).permute(0, 1, 4, 2, 5, 3, 6, 7)
    values = values.reshape(batch, *padded, channels)
    if shifted:
        values = values.roll(tuple(shift), (1, 2, 3))
    cut: Tensor = values[:, : sizes[0], : sizes[1], : sizes[2], :].contiguous()
    return cut


def _multiscale(self: Any, x: Tensor, thw: tuple[int, int, int]) -> tuple[Tensor, tuple[int, int, int]]:
    """MultiscaleAttention.forward, operation by operation, with modules for those that need a rule."""
    from torchvision.models.video.mvit import _add_rel_pos

    batch, length, _ = x.shape
    heads = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim)
    query, key, value = heads.transpose(1, 3).unbind(dim=2)
    key_thw = thw
    if self.pool_k is not None:
        key, key_thw = self.pool_k(key, thw)
    if self.pool_v is not None:
        value = self.pool_v(value, thw)[0]
    if self.pool_q is not None:
        query, thw = self.pool_q(query, thw)
    size, relative = thw, (self.rel_pos_h, self.rel_pos_w, self.rel_pos_t)

    def added(query: Tensor) -> Tensor:
        zeros = query.new_zeros(*query.shape[:3], key.shape[2])
        scores: Tensor = _add_rel_pos(zeros, query, size, key_thw, *relative)
        return scores

    self.canonizer_scores.added = added if all(table is not None for table in relative) else None
    try:
        weights = self.canonizer_softmax(self.canonizer_scores(query, key))
    finally:
        self.canonizer_scores.added = None
    mixed = self.canonizer_mix(weights, value)
    if self.residual_pool and self.residual_with_cls_embed:
        mixed = self.canonizer_sum(mixed, query)
    elif self.residual_pool:
        mixed = torch.cat([mixed[:, :, :1], self.canonizer_sum(mixed[:, :, 1:], query[:, :, 1:])], 2)
    return self.project(mixed.transpose(1, 2).reshape(batch, -1, self.output_dim)), thw
