"""Measure thresholds on clips that stand still, and verify them on others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from selrel_kernels import reference

from ..attribution.foreign import Method, as_attributor
from ..attribution.target import Target
from ..errors import InputError
from ..network.output import logits_of
from ..pipeline import device_of, explain, spec_of
from ..progress import Progress, watched
from ..selection.regions import RegionNull, RegionSelection, cell_changes
from ..selection.relevance_source import RelevanceSource
from ..selection.selections import CalibratedSelection, check_alpha
from .stills import Stills, synthetic_stills
from .thresholds import ALPHAS, CLASSES, REGION_Q, Calibration, Level

CLIPS = 400
# Clips explained at once: on one thread torch convolves a single clip several times slower than one of a batch.
_BATCH = 4


def calibrate(
    model: nn.Module,
    method: Method = "dtd",
    stills: Stills | None = None,
    *,
    alphas: Sequence[float] = ALPHAS,
    classes: str = "drawn",
    progress: Progress = False,
    **options: Any,
) -> Calibration:
    """Measure thresholds on still clips of ``model`` and verify them on others.

    A still clip is a frame of ``stills`` as its camera films it, by default repeated T times, or footage of a world
    that stands still. It is explained for a class drawn at random, or with ``classes="top"`` for its own top class.
    |G_t| of its relevance, divided by Σ|R|, is what the selection sees where nothing moves. The threshold of time step
    t is the 1−alpha quantile of all its voxels over all clips: the least value that at most a share alpha exceeds. It
    is exact, no value is binned or left out; a share max(alpha) of all values is held in memory.

    ``method`` is what ``explain`` takes. Without ``stills``, synthetic ones. ``progress`` shows how far it is.

    Raises InputError for an alpha outside (0, 0.5), too few clips for the smallest alpha, and what ``explain`` refuses.
    """
    if classes not in CLASSES:
        raise InputError(f"classes is {' or '.join(map(repr, CLASSES))}, got {classes!r}")
    for alpha in alphas:
        check_alpha(alpha)
    attributor = as_attributor(method, model, options)
    made_for = RelevanceSource.of(attributor)
    spec = spec_of(model)
    stills = stills or synthetic_stills(spec, CLIPS, CLIPS)
    levels = sorted(set(alphas), reverse=True)
    total = len(stills.fit) * spec.crop * spec.crop
    if not levels or levels[-1] * total < 1 or not stills.held_out:
        raise InputError(
            f"{len(stills.fit)} and {len(stills.held_out)} clips are too few to calibrate alpha "
            f"{', '.join(f'{alpha:g}' for alpha in levels)} and to verify it: give more"
        )
    device = device_of(model)
    tail = _Tail(total, levels[0])
    selections: list[CalibratedSelection] = []
    rates: list[list[float]] = []
    changes: list[npt.NDArray[np.float32]] = []
    region_null: RegionNull | None = None
    alarms: list[float] = []
    drawn = np.random.default_rng((stills.seed, 1))
    with attributor:
        work = [(part, first) for part in (stills.fit, stills.held_out) for first in range(0, len(part), _BATCH)]
        for part, first in watched(work, progress, "still clips"):
            pixels = np.stack(
                [stills.clip(part, index, spec.frames) for index in range(first, min(first + _BATCH, len(part)))]
            )
            clips = torch.from_numpy(spec.from_pixels(pixels)).to(device)
            target: Target = "top1"
            if classes == "drawn":
                target = drawn.integers(_number_of_classes(model, clips), size=len(clips)).tolist()
            relevance = torch.from_numpy(explain(model, clips, attributor, target).relevance)
            if part is stills.fit:
                for gradient in null_gradient(relevance):
                    tail.add(gradient)
                changes.append(cell_changes(relevance).permute(1, 0, 2, 3).flatten(1).numpy())
                continue
            region_null = region_null or RegionNull.of(np.concatenate(changes, axis=1))
            kept = RegionSelection(REGION_Q, region_null, made_for).mask(relevance)
            alarms += kept.flatten(1).any(1).float().tolist()
            selections = selections or [CalibratedSelection(a, tail.quantiles(a), made_for) for a in levels]
            # Over all steps where there is none to leave out, or none to leave in.
            steps = torch.from_numpy(tail.alive() if tail.alive().any() else ~tail.alive())
            exceeding = [selection.mask(relevance)[:, steps].float().mean((1, 2, 3)) for selection in selections]
            rates += torch.stack(exceeding, 1).tolist()
    mean, error = np.mean(rates, 0), np.std(rates, 0, ddof=min(len(rates) - 1, 1)) / math.sqrt(len(rates))
    return Calibration(
        made_for=made_for,
        levels=tuple(
            Level(selection.alpha, selection.thresholds, float(rate), float(spread))
            for selection, rate, spread in zip(selections, mean, error, strict=True)
        ),
        clips=len(stills.fit),
        held_out=len(stills.held_out),
        stills=stills.source,
        generator_version=stills.generator_version,
        seed=stills.seed,
        classes=classes,
        regions=region_null,
        false_alarms=float(np.mean(alarms)),
    )


def _number_of_classes(model: nn.Module, clips: torch.Tensor) -> int:
    """Return K: as the network says, or as a forward pass shows."""
    known = getattr(model, "num_classes", None)
    if isinstance(known, int):
        return known
    with torch.inference_mode():
        return int(logits_of(model, clips[:1]).shape[1])


def null_gradient(relevance: torch.Tensor) -> npt.NDArray[np.float32]:
    """|G| of relevance [B,T,H,W] that is divided by Σ|R| first: float32 [B,T,H·W]. Of a map of zeros: zero."""
    mass = relevance.abs().sum((1, 2, 3), keepdim=True)
    gradient = reference.motion_gradient(relevance).abs() / mass.clamp_min(torch.finfo(mass.dtype).tiny)
    return np.asarray(gradient.flatten(2).numpy(), np.float32)


class _Tail:
    """The greatest values of each time step, out of ``total`` to come: as many as the quantile 1−``share`` needs."""

    def __init__(self, total: int, share: float) -> None:
        self.total = total
        self.keep = self._above(share) + 1
        self.held: list[npt.NDArray[np.float32]] = []

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Take in values [T,n]."""
        self.held.append(values)
        if sum(part.shape[1] for part in self.held) > 2 * self.keep + values.shape[1]:
            self.held = [self._greatest()]

    def quantiles(self, alpha: float) -> tuple[float, ...]:
        """Return for each time step the least number that at most a share ``alpha`` of all values exceeds."""
        return tuple(np.sort(self._greatest(), axis=1)[:, -1 - self._above(alpha)].tolist())

    def alive(self) -> npt.NDArray[np.bool_]:
        """Return for each time step whether any value was above zero."""
        return np.asarray(self._greatest().max(axis=1) > 0)

    def _above(self, alpha: float) -> int:
        return math.floor(alpha * self.total * (1 + 1e-12))

    def _greatest(self) -> npt.NDArray[np.float32]:
        values = np.concatenate(self.held, axis=1)
        if values.shape[1] <= self.keep:
            return values
        return np.partition(values, values.shape[1] - self.keep, axis=1)[:, -self.keep :]
