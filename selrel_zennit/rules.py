"""Rules that Zennit lacks: max pools that share relevance, the contrast of a class layer, attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
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
