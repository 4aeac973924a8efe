"""Rules that Zennit lacks: max pools that share relevance, and the contrast of a class layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from zennit.core import BasicHook, Hook, Stabilizer
from zennit.rules import ClampMod, zero_bias

from .errors import InputError

# A window whose mean activation lies below this counts as empty: the division would overflow.
_EMPTY = 1e-30


class ProportionalMaxPool(Hook):
    """Max pool rule: the relevance of an output is shared in proportion to the activations in its window.

    R_i = Σ_o a_i⁺ R_o ÷ Σ_{k in window o} a_k⁺. Windows may overlap; padding gets nothing. A window without a positive
    activation is shared equally among its positions, the limit for equal activations, so that relevance is conserved
    there too. Ties share equally by the same formula. For nn.MaxPool1d to 3d and nn.AdaptiveMaxPool1d to 3d.

    Raises InputError for a dilated pool, and TypeError for a module that is no max pool.

    Source: the proportional rule of Bach et al. 2015 for pooling, as Hiley et al. use it in a later version of their
    code.
    """

    def forward(self, module: nn.Module, input: tuple[torch.Tensor, ...], output: Any) -> None:
        """Keep the input for the backward pass."""
        self.stored_tensors["input"] = input[0]

    def backward(
        self, module: nn.Module, grad_input: Any, grad_output: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        """Return the relevance of the input."""
        relevance = grad_output[0]
        mean = _mean_over_windows(module, tuple(relevance.shape))
        activation = self.stored_tensors["input"].detach().clamp(min=0)
        with torch.enable_grad():
            # The mean is linear: its gradient hands a value of each window to all of its positions. Whatever number
            # the mean divides by, a constant of the window, falls out of the share.
            positions = torch.ones_like(activation).requires_grad_()
            size = mean(positions)
            total = mean(activation)
            empty = total <= _EMPTY
            (by_share,) = torch.autograd.grad(
                size, positions, (relevance / total.masked_fill(empty, 1)).masked_fill(empty, 0), retain_graph=True
            )
            (equally,) = torch.autograd.grad(size, positions, (relevance / size.detach()).masked_fill(~empty, 0))
        return (activation * by_share + equally,)


class ZPlusContrast(BasicHook):
    """z⁺ minus z⁺ of the negated weights: what speaks for a class minus what speaks against it.

    R_j = Σ_i [ (x_j w_ij)⁺ ÷ Σ_k (x_k w_ik)⁺ − (x_j w_ij)⁻ ÷ Σ_k (x_k w_ik)⁻ ] R_i: both passes of contrastive
    excitation backprop at once, which Zennit's AlphaBeta, with α = β = 1, does not allow. Relevance sums to 0 where a
    unit has contributions of both signs.

    Source: Zhang et al. 2018, §3.3.
    """

    def __init__(self, stabilizer: Any = 1e-6, zero_params: Any = None) -> None:
        stable = Stabilizer.ensure(stabilizer)
        given, unbiased = {"zero_params": zero_params}, {"zero_params": zero_bias(zero_params)}
        positive, negative = (lambda input: input.clamp(min=0)), (lambda input: input.clamp(max=0))
        super().__init__(
            input_modifiers=[positive, negative, positive, negative],
            param_modifiers=[
                ClampMod(min=0.0, **given),
                ClampMod(max=0.0, **unbiased),
                ClampMod(max=0.0, **given),
                ClampMod(min=0.0, **unbiased),
            ],
            output_modifiers=[lambda output: output] * 4,
            gradient_mapper=lambda relevance, outputs: (
                [relevance / stable(outputs[0] + outputs[1])] * 2 + [-relevance / stable(outputs[2] + outputs[3])] * 2
            ),
        )


def _mean_over_windows(pool: nn.Module, size: tuple[int, ...]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the average pool with the windows of a max pool whose output has spatial ``size``; padding is zero."""
    for dimensions in (1, 2, 3):
        if isinstance(pool, getattr(nn, f"AdaptiveMaxPool{dimensions}d")):
            adaptive: Callable[..., torch.Tensor] = getattr(functional, f"adaptive_avg_pool{dimensions}d")
            return partial(adaptive, output_size=pool.output_size)
        if isinstance(pool, getattr(nn, f"MaxPool{dimensions}d")):
            average: Callable[..., torch.Tensor] = getattr(functional, f"avg_pool{dimensions}d")
            return partial(_mean_of_fixed_windows, average, pool, size[-dimensions:])
    raise TypeError(f"ProportionalMaxPool is a rule for max pools, not for {type(pool).__name__}")


def _mean_of_fixed_windows(
    average: Callable[..., torch.Tensor], pool: Any, size: tuple[int, ...], values: torch.Tensor
) -> torch.Tensor:
    kernel, stride, padding, dilation = (
        value if isinstance(value, tuple) else (value,) * len(size)
        for value in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    )
    if any(step != 1 for step in dilation):
        raise InputError(f"a max pool with dilation {pool.dilation} cannot share relevance; use pool='winner'")
    # Padded by hand up to the end of the last window: average pools refuse an input smaller than the kernel, which
    # max pools take, and so ceil_mode needs no case of its own.
    edges: list[int] = []
    for axis in reversed(range(len(size))):
        end = (size[axis] - 1) * stride[axis] + kernel[axis]
        edges += [padding[axis], max(end - padding[axis] - values.shape[axis - len(size)], 0)]
    return average(functional.pad(values, edges), kernel, stride)
