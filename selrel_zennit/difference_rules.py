"""LRP on differences: rules that hand down what changes between a clip and a reference, to the last bit of it.

A network runs on a clip and on a reference. a and b are what a layer takes then, d = a − b. A linear layer changes its
output j by Δ_j = Σ_i z_ij, z_ij = w_ij d_i: the bias cancels, so that nothing is lost to it. The relevance R_j of that
change goes to the terms that pull the same way as Δ_j and, with β > 0, is taken back from those against it:

R_i = Σ_j R_j [ (1+β) (z_ij)same ÷ s_j − β (z_ij)against ÷ o_j ],

s_j and o_j the sums of the two kinds. With σ_j the sign of Δ_j, (z)same = (|z| + σz)/2, so that s_j is at least half of
all terms and the division never blows up. For β = 0 and q_j = R_j ÷ (Σ|w||d| + |Δ_j|) it comes to

R_i = |d_i| (|w|ᵀq)_i + d_i (wᵀ(σq))_i.

Functions of one value pass relevance on: a change of output has one cause, the change of input. Everything else here is
one of these sums, or a maximum. ΣR is the change of the output, but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from zennit.canonizers import Canonizer
from zennit.core import Composite, Hook
from zennit.layer import Sum
from zennit.types import Activation, AvgPool, BatchNorm, ConvolutionTranspose, Linear, MaxPool

from .canonizers.gates import Gate

State = Literal["clip", "reference"]

# The forwards that do nothing but convolve; a class of its own may pad first.
_CONVOLUTIONS = tuple(
    getattr(nn, f"Conv{kind}{dimensions}d").forward for kind in ("", "Transpose") for dimensions in (1, 2, 3)
)


class Passes:
    """Which pass is running, of the two that rules compare; all rules of a composite share one."""

    def __init__(self) -> None:
        self.running: State = "clip"

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Let what runs inside be the reference."""
        self.running = "reference"
        try:
            yield
        finally:
            self.running = "clip"


class DifferenceRule(Hook):
    """A rule that sees both states of its module: its inputs and output for the clip, and for the reference.

    ``beta`` is that of the module's docstring, for rules that share.
    """

    def __init__(self, passes: Passes, beta: float = 0.0) -> None:
        super().__init__()
        self.passes, self.beta = passes, beta

    def copy(self) -> DifferenceRule:
        """Return one like this for another module, of the same passes."""
        return type(self)(self.passes, self.beta)

    def pre_forward(self, module: Any, input: Any, keywords: Any = None) -> Any:
        """As Zennit, and copy what a module would write over in the pass that has no gradient.

        Zennit 1.0 gives keywords, and takes both back; 0.5 knows none.
        """
        given = (input,) if keywords is None else (input, keywords)
        made = super().pre_forward(module, *given)
        if not getattr(module, "inplace", False) or torch.is_grad_enabled():
            return made
        return tree_map_only(Tensor, torch.clone, input if keywords is None else given)

    def forward(self, module: nn.Module, input: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what came in and went out."""
        for place, value in enumerate(input):
            self.stored_tensors[f"{self.passes.running} input {place}"] = value.detach()
        self.stored_tensors[f"{self.passes.running} output"] = output.detach()

    def states(self, which: str) -> tuple[Tensor, Tensor]:
        """Return (the clip's, the reference's) of "output", "input 0", "input 1"."""
        return self.stored_tensors[f"clip {which}"], self.stored_tensors[f"reference {which}"]

    def change(self, which: str) -> Tensor:
        """Return the clip's minus the reference's."""
        clip, reference = self.states(which)
        return clip - reference

    def shares(self, relevance: Tensor, size: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return p and m such that a term z of ``change`` = Σz, ``size`` = Σ|z|, gets |z|·p + z·m of the relevance."""
        sign = torch.where(change >= 0, 1.0, -1.0).to(change)
        total = size + change.abs()
        share = _divided(relevance, total)
        if not self.beta:
            return share, sign * share
        against = size - change.abs()
        # Where nothing pulls against but rounding, there is nothing to take back.
        some = against > total * torch.finfo(total.dtype).eps ** 0.5
        back = torch.where(some, self.beta * _divided(relevance, torch.where(some, against, 1.0)), 0.0)
        share = torch.where(some, (1 + self.beta) * share, share)
        return share - back, sign * (share + back)


class PassChange(DifferenceRule):
    """A function of each value: a change of output has one cause, and relevance is passed on."""

    def forward(self, module: nn.Module, input: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep nothing."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the relevance of the output."""
        return (grad_output[0],)


class LinearDifference(DifferenceRule):
    """Convolutions, transposed ones too, and linear layers."""

    def backward(self, module: Any, grad_input: Any, grad_output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the relevance of the input's change."""
        change, magnitude = self.change("input 0"), module.weight.detach().abs()
        extent = change.abs()
        size = _applied(module, extent, magnitude)
        by_size, by_sign = self.shares(grad_output[0], size, self.change("output"))
        weight = module.weight.detach()
        return (
            extent * _transposed(module, by_size, extent, magnitude)
            + change * _transposed(module, by_sign, change, weight),
        )


class AverageDifference(DifferenceRule):
    """Means, sums and average pools, of modules and functions: linear, and no weight below 0."""

    def backward(self, module: Any, grad_input: Any, grad_output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the relevance of the input's change."""
        change = self.change("input 0")
        with torch.enable_grad():
            extent = change.abs().requires_grad_()
            size = module.forward(extent)
            shares = self.shares(grad_output[0], size.detach(), self.change("output"))
            by_size, by_sign = (torch.autograd.grad(size, extent, share, retain_graph=True)[0] for share in shares)
        return (extent.detach() * by_size + change * by_sign,)


class MaxDifference(DifferenceRule):
    """Max pools: all relevance goes to the winner of the greater of the two maxima.

    There the change has the sign of the output's: where the clip's maximum is the greater one, the reference has less
    at that very place, and the other way round.
    """

    def backward(self, module: Any, grad_input: Any, grad_output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the relevance of the input's change."""
        clip, reference = self.states("output")
        of_clip = (clip >= reference).to(clip)
        parts: list[Tensor] = []
        for values, share in zip(self.states("input 0"), (of_clip, 1 - of_clip), strict=True):
            with torch.enable_grad():
                given = values.detach().requires_grad_()
                pooled = module.forward(given)
                parts += torch.autograd.grad(pooled, given, grad_output[0] * share)
        return (parts[0] + parts[1],)


class SumDifference(DifferenceRule):
    """Zennit's Sum: the terms of a sum are its summands' changes."""

    def backward(self, module: Any, grad_input: Any, grad_output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the relevance of the summands' changes."""
        change = self.change("input 0")
        size = change.abs()
        by_size, by_sign = self.shares(grad_output[0], size.sum(module.dim), self.change("output"))
        return (size * by_size.unsqueeze(module.dim) + change * by_sign.unsqueeze(module.dim),)


class ProductDifference(DifferenceRule):
    """A product of two values: Δ(uv) = ū Δv + v̄ Δu, ū and v̄ the means of both states. Exact, and shared as a sum."""

    def backward(self, module: Any, grad_input: Any, grad_output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the relevance of both factors' changes."""
        (one, one_before), (other, other_before) = self.states("input 0"), self.states("input 1")
        terms = (one - one_before) * ((other + other_before) / 2), (other - other_before) * ((one + one_before) / 2)
        size = terms[0].abs() + terms[1].abs()
        by_size, by_sign = self.shares(grad_output[0], size, self.change("output"))
        first, second = (term.abs() * by_size + term * by_sign for term in terms)
        return first.sum_to_size(one.shape), second.sum_to_size(other.shape)


class Differences(Composite):
    """A difference rule for every module that needs one; what is left only moves values. ``passes`` is theirs.

    Raises nothing itself: what no rule sees is found by ``coverage``, as for every composite.
    """

    def __init__(self, beta: float = 0.0, canonizers: list[Canonizer] | None = None) -> None:
        super().__init__(module_map=self.mapping, canonizers=canonizers)
        self.passes = Passes()
        self.layer_map: list[tuple[Any, Hook]] = [
            (Sum, SumDifference(self.passes, beta)),
            (Gate, ProductDifference(self.passes, beta)),
            (Activation, PassChange(self.passes, beta)),
            (BatchNorm, PassChange(self.passes, beta)),
            (AvgPool, AverageDifference(self.passes, beta)),
            (MaxPool, MaxDifference(self.passes, beta)),
            (Linear, LinearDifference(self.passes, beta)),
        ]

    def mapping(self, ctx: dict[str, Any], name: str, module: nn.Module) -> Hook | None:
        """Return the rule for a module, None where there is none."""
        return next((hook for types, hook in self.layer_map if isinstance(module, types)), None)


def _divided(relevance: Tensor, by: Tensor) -> Tensor:
    some = by > 0
    return torch.where(some, relevance / torch.where(some, by, 1.0), 0.0)


def _applied(module: Any, values: Tensor, weight: Tensor) -> Tensor:
    """Return what a layer makes of ``values`` with other weights and no bias, with what else it does, as padding."""
    held = dict(module._parameters)
    try:
        module._parameters.update(dict.fromkeys(held), weight=weight)
        made: Tensor = module.forward(values)
    finally:
        module._parameters.clear()
        module._parameters.update(held)
    return made


def _transposed(module: Any, relevance: Tensor, like: Tensor, weight: Tensor) -> Tensor:
    """Return wᵀ of a layer with other weights: its derivative, the same everywhere. ``like`` gives the shape."""
    forward = type(module).forward
    if forward is nn.Linear.forward:
        found: Tensor = relevance @ weight
        return found
    plain = forward in _CONVOLUTIONS and not isinstance(module.padding, str) and module.padding_mode == "zeros"
    if not plain:
        with torch.enable_grad():
            values = torch.zeros_like(like).requires_grad_()
            (made,) = torch.autograd.grad(_applied(module, values, weight), values, relevance)
        return made
    # Without a forward pass, which autograd would want.
    batched = like.ndim == weight.ndim
    given, values = (relevance, like) if batched else (relevance[None], like[None])
    (made, _, _) = torch.ops.aten.convolution_backward(
        given,
        values,
        weight,
        None,
        list(module.stride),
        list(module.padding),
        list(module.dilation),
        isinstance(module, ConvolutionTranspose),
        list(module.output_padding),
        module.groups,
        [True, False, False],
    )
    back: Tensor = made if batched else made[0]
    return back
