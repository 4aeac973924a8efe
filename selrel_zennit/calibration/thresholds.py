"""Calibration: thresholds that a stated share of the voxels passes where nothing moves, measured and verified."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from zennit.attribution import Attributor

from selrel_kernels import reference

from ..attribution.foreign import Method, as_attributor
from ..errors import InputError
from ..files import atomic_path
from ..models import MODELS
from ..pipeline import device_of, explain, spec_of
from ..selection.relevance_source import RelevanceSource
from ..selection.selections import CalibratedSelection, check_alpha
from .stills import Stills, synthetic_stills

SCHEMA = 1
ALPHAS = (0.01, 0.001)
CLIPS = 400
# Clips explained at once: on one thread torch convolves a single clip several times slower than one of a batch.
_BATCH = 4
TOLERANCE = 0.2
"""How far a false-positive rate on held-out clips may lie from its alpha, as a share of it."""

_SHIPPED = Path(__file__).parent / "shipped"

Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Level:
    """The thresholds of one alpha, [T], and how they did on frozen clips that they were not made from.

    ``held_out_rate`` is the share of those clips' voxels that exceed the thresholds, ``held_out_error`` its standard
    error, from clip to clip. Time steps at which the gradient over time was zero in every voxel of every clip are not
    counted: there nothing can exceed. A CAM of two time steps that is upsampled to sixteen has three at either end.
    """

    alpha: float
    thresholds: tuple[float, ...]
    held_out_rate: float
    held_out_error: float

    @property
    def holds(self) -> bool:
        """Say whether the held-out rate lies within TOLERANCE of alpha."""
        return abs(self.held_out_rate - self.alpha) <= TOLERANCE * self.alpha


@dataclass(frozen=True)
class Calibration:
    """Calibrated thresholds of one model and method, for some false-positive rates alpha.

    made_for           whose relevance it is
    levels             one for each alpha, the largest first
    clips, held_out    how many frozen clips the thresholds were made from, and verified on
    stills             where the frames of those clips came from
    generator_version  of the synthetic clips, None for others
    seed               of the choice of frames

    Raises InputError on construction for thresholds or rates that cannot be.
    """

    made_for: RelevanceSource
    levels: tuple[Level, ...]
    clips: int
    held_out: int
    stills: str
    generator_version: int | None
    seed: int

    def __post_init__(self) -> None:
        if not self.levels:
            raise InputError("a calibration needs thresholds for one alpha at least")
        for level in self.levels:
            CalibratedSelection(level.alpha, level.thresholds, self.made_for)
            if not (0 <= level.held_out_rate <= 1 and level.held_out_error >= 0):
                raise InputError(f"alpha {level.alpha:g}: no false-positive rate: {level.held_out_rate}")

    @property
    def alphas(self) -> tuple[float, ...]:
        """The false-positive rates there are thresholds for."""
        return tuple(level.alpha for level in self.levels)

    def level(self, alpha: float) -> Level:
        """Return the thresholds for ``alpha``. Raises InputError for one that was not calibrated: none is guessed."""
        check_alpha(alpha)
        for level in self.levels:
            if math.isclose(level.alpha, alpha, rel_tol=1e-9):
                return level
        known = ", ".join(f"{known:g}" for known in self.alphas)
        raise InputError(f"not calibrated for alpha {alpha:g}, only for {known}: `selrel calibrate --alpha {alpha:g}`")

    def selection(self, alpha: float = 0.001) -> CalibratedSelection:
        """Return the selection with false-positive rate ``alpha``; see ``level`` for the error."""
        return CalibratedSelection(alpha, self.level(alpha).thresholds, self.made_for)

    def to_dict(self) -> dict[str, Any]:
        """Return what the JSON file holds."""
        return {
            "schema": SCHEMA,
            "made_for": self.made_for.to_dict(),
            "levels": [{**vars(level), "thresholds": list(level.thresholds)} for level in self.levels],
            "clips": self.clips,
            "held_out": self.held_out,
            "stills": self.stills,
            "generator_version": self.generator_version,
            "seed": self.seed,
        }

    def to_json(self) -> str:
        """Return the calibration as JSON text; ``from_json`` reads it back exactly."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Read what ``to_json`` wrote. Raises InputError for anything else, and for the file of a later version."""
        try:
            values = json.loads(text)
            schema = values.pop("schema")
            if schema != SCHEMA:
                raise InputError(f"a calibration of schema {schema}, this version reads {SCHEMA}: update selrel-zennit")
            values["made_for"] = RelevanceSource(**values["made_for"])
            values["levels"] = tuple(
                Level(**{**level, "thresholds": tuple(level["thresholds"])}) for level in values["levels"]
            )
            return cls(**values)
        except InputError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"not a calibration ({type(error).__name__}: {error})") from None

    @classmethod
    def read(cls, path: str | Path) -> Calibration:
        """Read a file. Raises InputError, naming it, where it cannot be read or is no calibration."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({error}): make one with `selrel calibrate`") from None
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        with atomic_path(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def shipped(cls, attributor: Attributor) -> Calibration:
        """Return the calibration that ships for an attributor's model, weights, method and options.

        Raises InputError where there is none.
        """
        source = RelevanceSource.of(attributor)
        path = _SHIPPED / source.model / f"{source.method}.json"
        what = f"{source.method} on {source.model}"
        if source.model not in MODELS or not path.is_file():
            raise InputError(f"no calibration ships for {what}: make one with `selrel calibrate`, pass --calibration")
        found = cls.read(path)
        difference = found.made_for.difference(source)
        if difference:
            raise InputError(
                f"the calibration that ships for {what} is for another {difference}: make one with `selrel calibrate`, "
                "pass --calibration"
            )
        return found


def shipped_for(model: str) -> list[str]:
    """Return the methods for which a calibration of a registered model ships."""
    return sorted(path.stem for path in (_SHIPPED / model).glob("*.json"))


def calibrate(
    model: nn.Module,
    method: Method = "dtd",
    stills: Stills | None = None,
    *,
    alphas: Sequence[float] = ALPHAS,
    progress: Progress = iter,
    **options: Any,
) -> Calibration:
    """Measure thresholds on frozen clips of ``model`` and verify them on others.

    A frozen clip is one frame of ``stills`` repeated T times, explained for its own top class. |G_t| of its relevance,
    divided by Σ|R|, is what the selection sees where nothing moves. The threshold of time step t is the 1−alpha
    quantile of all its voxels over all clips: the least value that at most a share alpha exceeds. It is exact, no
    value is binned or left out; a share max(alpha) of all values is held in memory.

    ``method`` is what ``explain`` takes. Without
    ``stills``, synthetic ones. ``progress`` wraps the loop over all clips.

    Raises InputError for an alpha outside (0, 0.5), too few clips for the smallest alpha, and what ``explain`` refuses.
    """
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
    with attributor:
        work = [(part, first) for part in (stills.fit, stills.held_out) for first in range(0, len(part), _BATCH)]
        for part, first in progress(work):
            frames = np.stack([part[index] for index in range(first, min(first + _BATCH, len(part)))])
            pixels = np.repeat(frames[:, None], spec.frames, axis=1)
            clips = torch.from_numpy(spec.from_pixels(pixels)).to(device)
            relevance = torch.from_numpy(explain(model, clips, attributor).relevance)
            if part is stills.fit:
                for gradient in null_gradient(relevance):
                    tail.add(gradient)
                continue
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
    )


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
