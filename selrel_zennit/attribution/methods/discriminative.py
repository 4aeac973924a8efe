"""Discriminative relevance: relevance of the clip minus that of its frames, each seen as a clip of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from zennit.core import Composite

from ...errors import InputError
from ..options import choice, whole
from .gradient import Gradient
from .lrp import dtd, lrp_alpha2_beta1, lrp_epsilon_gamma_box, lrp_epsilon_plus

AttrOutputFn = Callable[[Tensor], Tensor]
_BASES: dict[str, Callable[[nn.Module], Gradient]] = {
    "dtd": dtd,
    "lrp_epsilon_plus": lrp_epsilon_plus,
    "lrp_epsilon_gamma_box": lrp_epsilon_gamma_box,
    "lrp_alpha2_beta1": lrp_alpha2_beta1,
}
NORMALISATIONS = ("author", "none")


class Discriminative(Gradient):
    """Temporal relevance as Hiley et al. 2019 have it: R − the spatial relevance of each frame.

    R is the relevance of the class, channels summed, ÷ max|R|. For each frame f the clip of that frame repeated is
    explained for the same class, S_f, channels summed, ÷ max|S_f|; its time step ``slice`` is the spatial relevance of
    frame f: the first one (0), frame f's own ("same"), or the mean over time ("mean"). With ``normalise="none"``
    neither map is divided. The difference is signed. It has one channel: a third of it lies on each of the clip's.

    ``spatial`` [B,T,H,W] is what was subtracted, of the last call alone. ``batch`` frozen clips are explained at once.

    Source: Hiley et al. 2019, arXiv 1908.01536.
    """

    records = False

    def __init__(self, model: nn.Module, composite: Composite, normalise: str, slice: int | str, batch: int) -> None:
        super().__init__(model, composite)
        self.normalise, self.slice, self.batch = normalise, slice, batch
        self.spatial: Tensor | None = None

    def forward(self, input: Tensor, attr_output_fn: AttrOutputFn) -> tuple[Tensor, Tensor]:
        """Return (logits [B,K], temporal relevance [B,3,T,H,W], a third on each channel)."""
        given: list[Tensor] = []

        def kept(logits: Tensor) -> Tensor:
            given.append(attr_output_fn(logits))
            return given[0]

        output, relevance = super().forward(input, kept)
        steps = input.shape[2]
        frozen = [input[:, :, step : step + 1].expand_as(input).detach() for step in range(steps)]
        maps: list[Tensor] = []
        for first in range(0, steps, self.batch):
            some = frozen[first : first + self.batch]
            initial = given[0].repeat(len(some), 1)
            _, found = super().forward(torch.cat(some), lambda _, initial=initial: initial)
            maps += self._scaled(found.detach()).chunk(len(some))
        self.spatial = torch.stack([self._frame(one, step) for step, one in enumerate(maps)], 1)
        temporal = self._scaled(relevance.detach()) - self.spatial
        return output, (temporal / 3)[:, None].expand_as(input)

    def _scaled(self, relevance: Tensor) -> Tensor:
        summed = relevance.sum(1)
        if self.normalise == "none":
            return summed
        most = summed.abs().amax((1, 2, 3), keepdim=True)
        return torch.where(most > 0, summed / torch.where(most > 0, most, 1.0), 0.0)

    def _frame(self, of_frozen: Tensor, step: int) -> Tensor:
        if self.slice == "mean":
            return of_frozen.mean(1)
        return of_frozen[:, step if self.slice == "same" else 0]


def discriminative(
    model: nn.Module, normalise: str = "author", slice: int | str = 0, base: str = "dtd", batch: int = 4
) -> Discriminative:
    """Return discriminative relevance around ``base``; see the class. Raises InputError for an option that is unknown.

    ``base`` is dtd, as the authors have it, or one of this package's LRP methods.
    """
    choice("normalise", normalise, NORMALISATIONS)
    if slice not in (0, "same", "mean") or isinstance(slice, bool):
        raise InputError(f"slice must be 0, 'same' or 'mean', got {slice!r}")
    composite = _BASES[choice("base", base, tuple(_BASES))](model).composite
    return Discriminative(model, composite, normalise, slice, whole("batch", batch))
