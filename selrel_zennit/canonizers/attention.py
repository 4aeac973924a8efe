"""Attention taken apart: torchvision's video transformers, in modules that rules can see.

Products of queries and keys, the softmax, products of weights and values. The rules for them are in ``rules``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from zennit.canonizers import Canonizer

from .function_canonizer import register_each
from .functions import ResidualSum

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
