"""Gradients averaged over many inputs: SmoothGrad and integrated gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import nn

from ...errors import InputError
from ...references import make_reference
from ..base import AttrOutput, VideoAttributor
from ..options import Reference, ReferenceInput, choice, whole
from .motion import OUTPUTS, against_others


class _MeanGradient(VideoAttributor):
    """The mean of a function of the gradient over points near or on the way to the clip, ``batch`` points at a time.

    The initial relevance is taken once, from the logits of the clip itself, and is the same at every point. Memory
    grows with ``batch``, not with the number of points.
    """

    records = False

    def __init__(self, model: nn.Module, batch: int = 4, attr_output: AttrOutput = None) -> None:
        super().__init__(model, attr_output=attr_output)
        self.batch = whole("batch", batch)

    def _start(
        self, input: torch.Tensor, attr_output_fn: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the clip's logits and initial relevance, both [B,K]."""
        with torch.no_grad():
            output = self.model(input)
            return output, attr_output_fn(output)

    def _gradients(self, points: Iterable[torch.Tensor], initial: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the gradient [B,3,T,H,W] at each point [B,3,T,H,W]."""
        points = iter(points)
        while chunk := list(islice(points, self.batch)):
            stacked = torch.cat(chunk).requires_grad_()
            output = self.model(stacked)
            (gradient,) = torch.autograd.grad((output,), (stacked,), (initial.repeat(len(chunk), 1),))
            yield from gradient.chunk(len(chunk))


class SmoothGrad(_MeanGradient):
    """The mean gradient, or with ``squared`` the mean squared gradient, over noisy copies of the clip.

    The noise is Gaussian, its σ ``noise_level`` times the clip's own range (max − min over C, T, H, W). All ``samples``
    copies are noisy, as in the paper; Zennit's SmoothGrad leaves the last without noise. The noise depends on ``seed``
    and the shape alone: calls repeat, and a clip's relevance does not depend on the others of its batch.

    Raises InputError for fewer than one sample, or a noise level that is not positive.

    Source: Smilkov et al. 2017, arXiv 1706.03825; squared: Hooker et al. 2019, arXiv 1806.10758.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: int = 25,
        noise_level: float = 0.15,
        seed: int = 0,
        batch: int = 4,
        squared: bool = False,
        attr_output: AttrOutput = None,
    ) -> None:
        super().__init__(model, batch, attr_output)
        self.samples = whole("samples", samples)
        self.seed = whole("seed", seed, least=0)
        if not isinstance(noise_level, int | float) or not 0 < noise_level < float("inf"):
            raise InputError(f"noise_level must be a positive number, a share of the clip's range, got {noise_level!r}")
        self.noise_level = float(noise_level)
        self.squared = squared

    def forward(
        self, input: torch.Tensor, attr_output_fn: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B,K] of the clip, attribution [B,3,T,H,W])."""
        output, initial = self._start(input, attr_output_fn)
        sigma = self.noise_level * (input.amax((1, 2, 3, 4), True) - input.amin((1, 2, 3, 4), True))
        # On the CPU, so that a seed means the same on every device.
        generator = torch.Generator().manual_seed(self.seed)
        noisy = (
            input + sigma * torch.randn((1, *input.shape[1:]), generator=generator).to(input)
            for _ in range(self.samples)
        )
        total = torch.zeros_like(input)
        for gradient in self._gradients(noisy, initial):
            total += gradient.square() if self.squared else gradient
        return output, total / self.samples


class IntegratedGradients(_MeanGradient):
    """The gradient integrated along the straight line from a baseline to the clip, times their difference.

    The integral is a Gauss-Legendre sum of ``steps`` points, Captum's default; Zennit's IntegratedGradients takes the
    right Riemann sum. The attributions sum to the difference of the target's logit between clip and baseline, up to
    the error of the sum; after a call ``completeness_error`` [B] holds it as a share of that difference. ``baseline``
    is "mean" (zero in model units), "black", "frozen" (the middle frame repeated), or a tensor; see ReferenceInput.

    Raises InputError for fewer than one step, or a baseline that does not fit.

    Source: Sundararajan et al. 2017, arXiv 1703.01365.
    """

    def __init__(
        self,
        model: nn.Module,
        steps: int = 25,
        baseline: Reference = "mean",
        batch: int = 4,
        attr_output: AttrOutput = None,
    ) -> None:
        super().__init__(model, batch, attr_output)
        self.steps = whole("steps", steps)
        self.frozen = isinstance(baseline, str) and baseline == "frozen"
        self.baseline = ReferenceInput("baseline", "mean" if self.frozen else baseline, model)
        self.completeness_error: torch.Tensor | None = None

    def forward(
        self, input: torch.Tensor, attr_output_fn: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B,K] of the clip, attribution [B,3,T,H,W])."""
        output, initial = self._start(input, attr_output_fn)
        baseline = make_reference("middle")(input)[0] if self.frozen else self.baseline.like(input)
        attribution = self._integrated(input, baseline, initial)
        with torch.no_grad():
            change = ((output - self.model(baseline)) * initial).sum(1)
        self.completeness_error = relative_error(attribution, change)
        return output, attribution

    def _integrated(self, input: torch.Tensor, baseline: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
        # From nodes and weights on −1…1 to the path's 0…1.
        nodes, weights = np.polynomial.legendre.leggauss(self.steps)
        difference = input - baseline
        points = (baseline + float(node + 1) / 2 * difference for node in nodes)
        total = torch.zeros_like(input)
        for weight, gradient in zip(weights, self._gradients(points, initial), strict=True):
            total += float(weight) / 2 * gradient
        return total * difference


class MotionIntegratedGradients(IntegratedGradients):
    """Integrated gradients from clips without motion: what motion changes in the answer, shared out by the gradient.

    The answer is the margin of the class over the others, or with ``output="logit"`` its logit. The attributions are
    averaged over the references (see ``references``), and sum to the mean of m(x) − m(x̄), up to the error of the sum,
    ``completeness_error`` [B]. ``margin`` [B] and ``frozen_margins`` [B,K] are m of the clips and their references, of
    the last call. A clip that stands still has no relevance.
    """

    def __init__(self, model: nn.Module, reference: str, frames: int, steps: int, output: str, batch: int) -> None:
        super().__init__(model, steps, batch=batch)
        self.references = make_reference(reference, frames)
        self.output = output
        self.margin: torch.Tensor | None = None
        self.frozen_margins: torch.Tensor | None = None

    def forward(
        self, input: torch.Tensor, attr_output_fn: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B,K] of the clip, attribution [B,3,T,H,W])."""
        output, initial = self._start(input, attr_output_fn)
        if self.output == "margin":
            initial = against_others(initial)
        references = self.references(input)
        total = torch.zeros_like(input)
        margins = []
        for reference in references:
            total += self._integrated(input, reference, initial)
            with torch.no_grad():
                margins.append((self.model(reference) * initial).sum(1))
        self.margin, self.frozen_margins = (output * initial).sum(1), torch.stack(margins, 1)
        attribution = total / len(references)
        # Differences first: the mean of equal margins may be off by a last bit, and a still clip's change is exactly 0.
        change = (self.margin[:, None] - self.frozen_margins).mean(1)
        self.completeness_error = relative_error(attribution, change)
        return output, attribution


def relative_error(attribution: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Return how far ΣR is from what it should be, as a share of that, [B]; 0 where both are 0."""
    off = (attribution.flatten(1).sum(1) - change).abs()
    return torch.where(off > 0, off / change.abs(), torch.zeros_like(off))


def motion_integrated_gradients(
    model: nn.Module,
    reference: str = "frames",
    frames: int = 4,
    steps: int = 25,
    output: str = "margin",
    batch: int = 4,
) -> MotionIntegratedGradients:
    """Return integrated gradients from clips without motion; ``reference`` and ``frames`` as for motion_lrp."""
    return MotionIntegratedGradients(model, reference, frames, steps, choice("output", output, OUTPUTS), batch)


def smoothgrad(
    model: nn.Module, samples: int = 25, noise_level: float = 0.15, seed: int = 0, batch: int = 4
) -> SmoothGrad:
    """Return SmoothGrad; see the class for the options."""
    return SmoothGrad(model, samples, noise_level, seed, batch)


def smoothgrad_squared(
    model: nn.Module, samples: int = 25, noise_level: float = 0.15, seed: int = 0, batch: int = 4
) -> SmoothGrad:
    """Return SmoothGrad²; see SmoothGrad for the options."""
    return SmoothGrad(model, samples, noise_level, seed, batch, squared=True)


def integrated_gradients(
    model: nn.Module, steps: int = 25, baseline: Reference = "mean", batch: int = 4
) -> IntegratedGradients:
    """Return integrated gradients; see the class for the options."""
    return IntegratedGradients(model, steps, baseline, batch)
