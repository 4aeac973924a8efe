"""What a parity certificate holds, its limits, and how it reads. NumPy has no part in it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

# grade → the largest error of relevance, as a share of the yardsticks, and of the logits, as a share of their norm
GRADES = {"exact": 1e-3, "faithful": 1e-2, "approximate": 1e-1}
# A wrong class nearer than this share of the frozen distance is no yardstick: the method hardly tells classes apart.
CLASS_BLIND = 0.1
# Voxels whose |G| lies within this share of the threshold may fall on either side of it.
BAND = 0.05
# Outside the band the two selections must agree, but for one voxel in 100,000.
LEAST_IOU = {"exact": 0.999, "faithful": 0.995, "approximate": 0.8}
STRAY_VOXELS = 1e-5
# A selection must follow from the runner's own relevance, but for rounding: the same band, much narrower.
OWN_BAND = 1e-3
# A clip whose frozen map is nearer than this measures nothing: float32 alone makes errors of a tenth of it.
LEAST_FROZEN = 1e-4


@dataclass(frozen=True)
class Comparison:
    """One output of one clip and target. Errors are relative to the reference's norm, and to its largest value."""

    clip: int
    target: int
    output: str
    norm_error: float
    max_error: float
    cosine: float
    spearman: float
    sum: float
    reference_sum: float


@dataclass(frozen=True)
class Case:
    """One clip and target: its grade, and what it rests on.

    of_frozen, of_wrong_class  the error of relevance as a share of the clip's yardsticks (nan: there is no other class)
    same_top1, same_target     the same top class, the same class explained
    mask_iou                   of the selections, over voxels outside the band around the reference's threshold
    mask_strays, mask_flips    how many voxels differ outside the band, and inside it
    mask_contradictions        voxels of the mask that the selection of the runner's own relevance contradicts
    """

    clip: int
    target: int
    grade: str
    of_frozen: float
    of_wrong_class: float
    same_top1: bool
    same_target: bool
    mask_iou: float
    mask_strays: int
    mask_flips: int
    mask_contradictions: int


@dataclass(frozen=True)
class Yardsticks:
    """Norm-relative distances from a clip's map of its top class to two maps that are wrong, by the reference.

    ``frozen``: of the clip with its middle frame in place of all others. ``wrong_class``: the nearest of the other
    classes' maps (nan: there is no other class). ``class_blind``: the latter is too near to measure by.
    """

    clip: int
    frozen: float
    wrong_class: float
    class_blind: bool


@dataclass(frozen=True)
class Certificate:
    """The verdict and what it rests on. ``grade`` is exact, faithful, approximate or failed; ``reasons`` say why.

    ``class_blind``: no clip's map tells classes apart, so none can show that the right class was explained; only
    ``same_target`` does. ``notes`` are findings that explain figures: a constant factor, a sum that is off.
    """

    grade: str
    class_blind: bool
    reasons: list[str]
    notes: list[str]
    cases: list[Case]
    comparisons: list[Comparison]
    yardsticks: list[Yardsticks]

    def __repr__(self) -> str:
        return f"Certificate({self.grade}{self._figures()}, {len(self.cases)} cases)"

    @property
    def passed(self) -> bool:
        """Whether the grade is not failed."""
        return self.grade != "failed"

    def worst(self, output: str = "relevance") -> Comparison | None:
        """Return the comparison of an output with the largest norm-relative error; None where nothing came out."""
        rows = [row for row in self.comparisons if row.output == output]
        return max(rows, key=lambda row: row.norm_error, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate and its limits as JSON takes them; what is not finite is null."""
        limits = {
            "grades": GRADES,
            "class_blind": CLASS_BLIND,
            "band": BAND,
            "least_mask_iou": LEAST_IOU,
            "stray_voxels": STRAY_VOXELS,
            "own_band": OWN_BAND,
            "least_frozen": LEAST_FROZEN,
            "frozen": "the middle frame repeated",
        }
        found: dict[str, Any] = _finite({**asdict(self), "limits": limits})
        return found

    def __str__(self) -> str:
        blind = "; class-blind method: graded on the frozen clip alone" if self.class_blind else ""
        lines = [f"{self.grade}{self._figures()}{blind}"]
        for row in self.yardsticks:
            wrong = "there is no other class" if math.isnan(row.wrong_class) else f"a wrong class {row.wrong_class:.2g}"
            unused = ", too near to measure by" if row.class_blind and not math.isnan(row.wrong_class) else ""
            lines.append(f"clip {row.clip}: the frozen clip's map is {row.frozen:.2g} away, {wrong}{unused}")
        return "\n".join([*lines, *self.reasons, *self.notes])

    def _figures(self) -> str:
        worst = self.worst()
        if worst is None:
            return ""
        least = min(row.cosine for row in self.comparisons if row.output == "relevance")
        wrong = [
            case.of_wrong_class
            for case in self.cases
            if not self.yardsticks[case.clip].class_blind and math.isfinite(case.of_wrong_class)
        ]
        return (
            f": relevance differs by at most {worst.norm_error:.1e} of its norm, "
            f"{percent(max(case.of_frozen for case in self.cases))} of the way to a frozen clip"
            + (f" and {percent(max(wrong))} to a wrong class" if wrong else "")
            + f"; cosine at least {least:.6f}, mask IoU {min(case.mask_iou for case in self.cases):.4f}"
        )


def percent(share: float) -> str:
    """Return a share as a percentage of two digits or more."""
    return f"{100 * share:.0f} %" if 0.1 <= share < math.inf else f"{100 * share:.2g} %"


def _finite(value: Any) -> Any:
    """Return a value of dicts, lists and numbers with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
