"""Motion that adds up: what a network's answer owes to motion, as relevance that sums to it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...canonizers.batch_norm import DifferenceCanonizer
from ...difference_rules import Differences
from ...errors import InputError
from ...references import make_reference
from ..base import VideoAttributor

AttrOutputFn = Callable[[Tensor], Tensor]
OUTPUTS = ("margin", "logit")
VACATED = ("keep", "drop")


class MotionLRP(VideoAttributor):
    """LRP on differences: relevance of what motion changes in the network's answer.

    The answer m is the margin of the class over the others, f_c − mean of the other logits, or its logit. With x̄ the
    clip without motion (see ``references``), m(x) = m(x̄) + Δ. The attribution shares out Δ by ``difference_rules``,
    averaged over the references: it sums to the mean of m(x) − m(x̄_k). A clip that stands still is its own reference,
    and has none anywhere.

    ``margin`` [B] and ``frozen_margins`` [B,K] are m of the clips and of their references, of the last call alone.
    With ``vacated="drop"`` voxels are left out that differ from the reference only because something stood there in it
    that has gone: those where the clip is nearer to its median over time than the reference is. ``dropped`` [B] is
    their relevance, which the sum then lacks.

    With ``static`` set, ``static_part`` [B,3,T,H,W] is the same for still pictures: the relevance of what a reference
    adds over a blank clip (zero in model units), averaged; it sums to the mean frozen margin − ``blank_margin`` [B].

    The output attribution is given as for any attributor, 1 at the class as a rule.
    """

    records = False

    def __init__(self, model: nn.Module, reference: str, frames: int, beta: float, output: str, vacated: str) -> None:
        composite = Differences(beta, canonizers=[DifferenceCanonizer()])
        super().__init__(model, composite)
        self.references = make_reference(reference, frames)
        self.passes = composite.passes
        self.output, self.vacated = output, vacated
        # Whether to explain what still pictures add over a blank one, too: three more passes for each reference.
        self.static = False
        self.margin: Tensor | None = None
        self.blank_margin: Tensor | None = None
        self.static_part: Tensor | None = None
        self.frozen_margins: Tensor | None = None
        self.dropped: Tensor | None = None

    def forward(self, input: Tensor, attr_output_fn: AttrOutputFn) -> tuple[Tensor, Tensor]:
        """Return (logits [B,K], relevance [B,3,T,H,W])."""
        clip = input.detach().requires_grad_()
        logits = self.model(clip)
        weights = attr_output_fn(logits).detach()
        if self.output == "margin":
            weights = against_others(weights)
        total: Tensor | None = None
        dropped: Tensor | None = None
        margins = []
        references = self.references(input.detach())
        for reference in references:
            with self.passes.reference(), torch.no_grad():
                still = self.model(reference)
            margins.append((still * weights).sum(1))
            change = (logits.detach() - still) * weights
            (relevance,) = torch.autograd.grad(logits, clip, change, retain_graph=True)
            if self.vacated == "drop":
                left = relevance * _vacated(input.detach(), reference)
                relevance = relevance - left
                dropped = left.flatten(1).sum(1) if dropped is None else dropped + left.flatten(1).sum(1)
            total = relevance if total is None else total + relevance
        assert total is not None
        self.margin = (logits.detach() * weights).sum(1)
        self.frozen_margins = torch.stack(margins, 1)
        self.dropped = None if dropped is None else dropped / len(references)
        if self.static:
            self._explain_still(references, weights)
        return logits, total / len(references)

    def _explain_still(self, references: Tensor, weights: Tensor) -> None:
        """Explain what each reference adds over a blank clip: now it is the clip, and the blank one its reference."""
        with self.passes.reference(), torch.no_grad():
            blank = self.model(torch.zeros_like(references[0]))
        parts = []
        for reference in references:
            clip = reference.detach().clone().requires_grad_()
            still = self.model(clip)
            parts += torch.autograd.grad(still, clip, (still.detach() - blank) * weights)
        self.blank_margin = (blank * weights).sum(1)
        self.static_part = torch.stack(parts).mean(0)


def against_others(weights: Tensor) -> Tensor:
    """Turn an output attribution A [B,K] into the margin's: A_c − Σ_{k≠c} A_k ÷ (K−1). Raises InputError for K = 1."""
    if weights.shape[1] < 2:
        raise InputError("a model with one class has no margin over others; use output='logit'")
    made: Tensor = weights - (weights.sum(1, keepdim=True) - weights) / (weights.shape[1] - 1)
    return made


def _vacated(clip: Tensor, reference: Tensor) -> Tensor:
    """Return 1 where a voxel differs from the reference because of the reference, 0 elsewhere: [B,1,T,H,W]."""
    (median,) = make_reference("median")(clip)
    own, others = ((values - median).abs().sum(1, keepdim=True) for values in (clip, reference))
    nearer: Tensor = own < others
    return nearer.to(clip)


def motion_lrp(
    model: nn.Module,
    reference: str = "frames",
    frames: int = 4,
    beta: float = 0.0,
    output: str = "margin",
    vacated: str = "keep",
) -> MotionLRP:
    """Return LRP on differences. ``reference`` is frames, middle, median or camera; ``frames`` how many to average.

    ``beta`` takes relevance back from what pulls against the change, 0 or more; ``output`` is the margin or the logit;
    ``vacated`` keeps or drops voxels that something has left. Raises InputError for other values.
    """
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta < float("inf"):
        raise InputError(f"beta must be a number of 0 or more, got {beta!r}")
    for name, value, known in (("output", output, OUTPUTS), ("vacated", vacated, VACATED)):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return MotionLRP(model, reference, frames, float(beta), output, vacated)
