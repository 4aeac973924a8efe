"""The parity certificate: does a runner compute the same explanation, and could the figures tell if it did not?

An error is read against two distances that matter: to the map of the same clip frozen to its first frame, and to the
map of a wrong class. NumPy alone, so that a device can certify itself against the golden cases of its artifact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.errors import InputError
from selrel_zennit.explanation import Explanation

from .artifact import OUTPUTS, Artifact

Array = npt.NDArray[Any]
Explain = Callable[[Array, Any], Explanation]

# grade → largest norm-relative error of relevance
GRADES = {"exact": 1e-3, "faithful": 1e-2, "approximate": 1e-1}
# A wrong class closer than this leaves nothing to tell classes apart by.
CLASS_BLIND = 1e-2
# An error must stay below this share of the distance to a map that is known to be wrong.
MOST_OF_A_YARDSTICK = 0.5
# Voxels whose |G| lies within this share of the threshold may fall on either side of it.
BAND = 0.05
# Outside the band the selections must agree.
LEAST_IOU = {"exact": 0.999, "faithful": 0.99, "approximate": 0.9}


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
    """One clip and target: does the runner name the same class and keep the same voxels?

    ``mask_iou`` counts voxels outside the band around the threshold, ``mask_flips`` those that differ inside it.
    """

    clip: int
    target: int
    same_top1: bool
    same_target: bool
    mask_iou: float
    mask_flips: int


@dataclass(frozen=True)
class Yardsticks:
    """Norm-relative distances of a clip's map to two that are wrong, by the reference."""

    clip: int
    frozen: float
    wrong_class: float


@dataclass(frozen=True)
class Certificate:
    """The verdict and what it rests on. ``grade`` is exact, faithful, approximate or failed; ``reasons`` say why.

    ``class_blind``: maps of different classes hardly differ, so they cannot show that the right class was explained;
    only ``same_target`` does.
    """

    grade: str
    class_blind: bool
    reasons: list[str]
    cases: list[Case]
    comparisons: list[Comparison]
    yardsticks: list[Yardsticks]

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as JSON takes it."""
        return asdict(self)

    def __str__(self) -> str:
        maps = [row for row in self.comparisons if row.output == "relevance"]
        blind = "; class-blind: the wrong class cannot be told from the map" if self.class_blind else ""
        return "\n".join(
            [
                f"{self.grade}: relevance differs by at most {max(row.norm_error for row in maps):.2e} of its norm, "
                f"cosine at least {min(row.cosine for row in maps):.6f}, "
                f"mask IoU at least {min(case.mask_iou for case in self.cases):.4f}{blind}",
                *(
                    f"clip {row.clip}: a frozen clip is {row.frozen:.2e} away, a wrong class {row.wrong_class:.2e}"
                    for row in self.yardsticks
                ),
                *self.reasons,
            ]
        )


def certify(run: Explain, reference: Explain, clips: Array, selection: dict[str, Any]) -> Certificate:
    """Compare a runner with a reference on clips [N,3,T,H,W], each for the top class, the runner-up and the last class.

    Both are called with (clip [1,3,T,H,W], target) and return an Explanation: a Runner, or ``golden_reference``.
    ``selection`` holds the settings of the motion selection, as in the artifact. Raises InputError without clips.
    """
    if len(clips) == 0:
        raise InputError("a certificate needs at least one clip, better three")
    cases, comparisons, yardsticks = [], [], []
    for index in range(len(clips)):
        clip = clips[index : index + 1]
        top = reference(clip, -1)
        order = np.argsort(-top.logits[0], kind="stable")
        last = top.logits.shape[1] - 1
        others = {int(order[min(1, last)]): "runner-up", last: "last"}
        expected = {-1: top, **{target: reference(clip, target) for target in others}}
        for target, right in expected.items():
            got = run(clip, target)
            cases.append(_case(index, target, got, right, selection))
            comparisons += [
                _comparison(index, target, name, getattr(got, name)[0], getattr(right, name)[0])
                for name in ("logits", "relevance", "motion_relevance")
            ]
        frozen = reference(np.ascontiguousarray(np.broadcast_to(clip[:, :, :1], clip.shape)), int(top.target[0]))
        wrong = [_distance(e.relevance, top.relevance) for e in expected.values() if e.target[0] != top.target[0]]
        yardsticks.append(Yardsticks(index, _distance(frozen.relevance, top.relevance), min(wrong, default=math.nan)))
    blind = all(math.isnan(row.wrong_class) or row.wrong_class <= CLASS_BLIND for row in yardsticks)
    grade, reasons = _grade(cases, comparisons, yardsticks, blind)
    return Certificate(grade, blind, reasons, cases, comparisons, yardsticks)


def certify_golden(run: Explain, artifact: Artifact) -> Certificate:
    """Compare a runner with the golden cases of its artifact; needs no torch. Only for artifacts of batch 1."""
    if artifact.clip_shape[0] != 1:
        raise InputError("golden cases are compared one clip at a time: export with batch 1 to certify")
    golden = artifact.golden()
    return certify(run, golden_reference(golden), golden["clip"][::4, 0], artifact.selection)


def golden_reference(golden: dict[str, Array]) -> Explain:
    """Return a function that answers as the golden cases do. It raises KeyError for any other clip or target."""
    known = {
        (golden["clip"][index].tobytes(), int(golden["target"][index, 0])): index
        for index in range(len(golden["clip"]))
    }

    def explain(clip: Array, target: Any) -> Explanation:
        index = known[clip.tobytes(), int(target)]
        return Explanation(*(golden[name][index] for name in OUTPUTS))

    return explain


def _grade(
    cases: list[Case], comparisons: list[Comparison], yardsticks: list[Yardsticks], blind: bool
) -> tuple[str, list[str]]:
    reasons = []
    for case in cases:
        if not (case.same_top1 and case.same_target):
            reasons.append(f"clip {case.clip}, target {case.target}: another class is named or explained")
    relevance = [row for row in comparisons if row.output == "relevance"]
    for row in relevance:
        marks = yardsticks[row.clip]
        if row.norm_error >= MOST_OF_A_YARDSTICK * marks.frozen:
            reasons.append(f"clip {row.clip}: the error {row.norm_error:.2e} is as large as motion makes it")
        if not blind and row.norm_error >= MOST_OF_A_YARDSTICK * marks.wrong_class:
            reasons.append(f"clip {row.clip}: the error {row.norm_error:.2e} is as large as a wrong class makes it")
    if reasons:
        return "failed", reasons
    worst, least = max(row.norm_error for row in relevance), min(case.mask_iou for case in cases)
    for grade, limit in GRADES.items():
        if worst <= limit and least >= LEAST_IOU[grade]:
            return grade, reasons
    return "failed", [f"relevance differs by {worst:.2e}, and the masks agree to {least:.4f}"]


def _case(clip: int, target: int, got: Explanation, right: Explanation, selection: dict[str, Any]) -> Case:
    distance, threshold = motion_margin(right.relevance[0], **selection)
    inside = np.abs(distance) <= BAND * threshold
    a, b = got.mask[0], right.mask[0]
    either = int((~inside & (a | b)).sum())
    return Case(
        clip,
        target,
        same_top1=bool(got.logits[0].argmax() == right.logits[0].argmax()),
        same_target=bool(got.target[0] == right.target[0]),
        mask_iou=int((~inside & a & b).sum()) / either if either else 1.0,
        mask_flips=int((inside & (a != b)).sum()),
    )


def _comparison(clip: int, target: int, output: str, got: Array, right: Array) -> Comparison:
    a, b = got.astype(np.float64).ravel(), right.astype(np.float64).ravel()
    peak = np.abs(b).max()
    return Comparison(
        clip,
        target,
        output,
        norm_error=_distance(a, b),
        max_error=float(np.abs(a - b).max() / peak) if peak else float(np.abs(a).max()),
        cosine=_cosine(a, b),
        spearman=_cosine(*(rank - rank.mean() for rank in (_ranks(a), _ranks(b)))),
        sum=float(a.sum()),
        reference_sum=float(b.sum()),
    )


def _distance(value: Array, reference: Array) -> float:
    """Return ‖value − reference‖ ÷ ‖reference‖; 0 for two maps of zeros, infinity where only the reference is one."""
    difference, norm = (float(np.linalg.norm(x.astype(np.float64))) for x in (value - reference, reference))
    return difference / norm if norm else math.inf if difference else 0.0


def _cosine(a: Array, b: Array) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    # Two constant maps have no direction: they are alike if both are.
    return float(a @ b) / norms if norms else float(np.array_equal(a, b))


def _ranks(values: Array) -> npt.NDArray[np.float64]:
    """Return ranks, equal values sharing the mean of theirs: relevance has many zeros."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2.0)[places.ravel()], dtype=np.float64)


def motion_margin(
    relevance: Array, n_sigma: float, sign: str, sigma: str, border: str, normalise: str
) -> tuple[npt.NDArray[np.float64], float]:
    """Return how far each voxel of a map [T,H,W] lies above the threshold of the selection, and the threshold.

    The formulas of ``selrel_kernels.select_motion`` in NumPy and float64.
    """
    values = relevance.astype(np.float64)
    if normalise == "author-2020":
        values = values / max(float(np.abs(values).max()), np.finfo(np.float64).tiny)
        if values.min() < 0:
            values = (values - values.min()) / (values.max() - values.min())
    padded = np.pad(values, 1, mode="edge" if border == "replicate" else "constant")
    gradient = padded[2:] - padded[:-2]
    gradient = gradient[:, :-2] + 2 * gradient[:, 1:-1] + gradient[:, 2:]
    gradient = gradient[:, :, :-2] + 2 * gradient[:, :, 1:-1] + gradient[:, :, 2:]
    threshold = n_sigma * float(np.std(np.abs(gradient) if sigma == "absolute" else gradient, ddof=1))
    measured = {"absolute": np.abs(gradient), "rising": gradient, "falling": -gradient}[sign]
    return np.asarray(measured - threshold), threshold
