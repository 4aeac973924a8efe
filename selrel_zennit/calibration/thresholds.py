"""Calibration: thresholds that a stated share of the voxels passes where nothing moves, with how they held."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zennit.attribution import Attributor

from ..errors import InputError
from ..files import atomic_path
from ..models import MODELS
from ..selection.regions import RegionNull, RegionSelection
from ..selection.relevance_source import RelevanceSource
from ..selection.selections import CalibratedSelection, check_alpha

SCHEMA = 2
CLASSES = ("drawn", "top")
ALPHAS = (0.01, 0.001)
REGION_Q = 0.1
"""The rate of false discoveries at which regions are verified."""
TOLERANCE = 0.2
"""How far a false-positive rate on held-out clips may lie from its alpha, as a share of it."""

_SHIPPED = Path(__file__).parent / "shipped"


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
    seed               of the choice of frames, and of the classes
    classes            which class of a still clip was explained: "drawn" at random, so that the rates hold for whatever
                       class is asked for, or the clip's own "top" class
    regions            what regions are tested against; None in files of earlier versions
    false_alarms       of the held-out clips, the share in which RegionSelection keeps anything at q = REGION_Q

    Raises InputError on construction for thresholds or rates that cannot be.
    """

    made_for: RelevanceSource
    levels: tuple[Level, ...]
    clips: int
    held_out: int
    stills: str
    generator_version: int | None
    seed: int
    classes: str = "top"
    regions: RegionNull | None = None
    false_alarms: float | None = None

    def __post_init__(self) -> None:
        if self.classes not in CLASSES:
            raise InputError(f"the classes of a calibration are {' or '.join(CLASSES)}, got {self.classes!r}")
        if not self.levels:
            raise InputError("a calibration needs thresholds for one alpha at least")
        for level in self.levels:
            CalibratedSelection(level.alpha, level.thresholds, self.made_for)
            if not (0 <= level.held_out_rate <= 1 and level.held_out_error >= 0):
                raise InputError(f"alpha {level.alpha:g}: no false-positive rate: {level.held_out_rate}")

    def __repr__(self) -> str:
        alphas = ", ".join(f"{alpha:g}" for alpha in self.alphas)
        return f"Calibration({self.made_for.method} on {self.made_for.model}, alpha {alphas}, {self.clips} still clips)"

    @property
    def alphas(self) -> tuple[float, ...]:
        """The false-positive rates there are thresholds for."""
        return tuple(level.alpha for level in self.levels)

    @property
    def regions_hold(self) -> bool:
        """Say whether the share of false alarms lies at REGION_Q or below, or above by no more than chance.

        Of still clips a share q is expected to keep anything; two standard errors of that share are allowed.
        """
        chance = math.sqrt(REGION_Q * (1 - REGION_Q) / self.held_out)
        return self.false_alarms is not None and self.false_alarms <= REGION_Q + 2 * chance

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

    def region_selection(self, q: float = 0.1) -> RegionSelection:
        """Return the selection of regions, a share ``q`` of them in error. Raises InputError where there is no null."""
        if self.regions is None:
            raise InputError("the calibration is of an earlier version and knows no regions: make it anew")
        return RegionSelection(q, self.regions, self.made_for)

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
            "classes": self.classes,
            "regions": None if self.regions is None else self.regions.to_dict(),
            "false_alarms": self.false_alarms,
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
            if schema not in (1, SCHEMA):
                raise InputError(f"a calibration of schema {schema}, this version reads {SCHEMA}: update selrel-zennit")
            if values.get("regions") is not None:
                values["regions"] = RegionNull.from_dict(values["regions"])
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
