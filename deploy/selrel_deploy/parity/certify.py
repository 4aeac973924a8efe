"""The parity certificate: does a runner compute the same explanation, and could the figures tell if it did not?

An error is read against two distances that mean something: to the map of the same clip frozen to one frame, and to the
map of a wrong class. NumPy alone, so that a device can certify itself against the golden cases of its artifact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.errors import InputError
from selrel_zennit.explanation import Explanation
from selrel_zennit.progress import Progress, watched

from ..artifact.format import OUTPUTS, Artifact
from ..runners.base import OutputError
from .certificate import (
    BAND,
    CLASS_BLIND,
    GRADES,
    LEAST_FROZEN,
    LEAST_IOU,
    OWN_BAND,
    STRAY_VOXELS,
    Case,
    Certificate,
    Comparison,
    Yardsticks,
    percent,
)
from .measures import cosine, distance, frozen, is_noise, motion_margin, ranks

Array = npt.NDArray[Any]
Explain = Callable[[Array, Any], Explanation]


def certify(
    run: Explain,
    reference: Explain,
    clips: Array,
    selection: dict[str, Any],
    *,
    batch: int = 1,
    network: Callable[[Array], Array] | None = None,
    stills: Array | None = None,
    progress: Progress = False,
) -> Certificate:
    """Compare a runner with a reference, each clip for the top class, the runner-up and the last class.

    ``clips`` are what the runner takes: float32 [N,3,T,H,W], or frames uint8 [N,T,H,W,3]; N is a multiple of ``batch``.
    ``run`` and ``reference`` are called with (clips [batch,…], a target or one per clip) and return an Explanation: a
    Runner, ``golden_reference``, ``zennit_reference``. ``selection`` holds the settings of the motion selection, as in
    the artifact. ``network`` returns the logits [batch,K] of the bare network for such clips: the runner's are compared
    with them too, in a row of their own. ``stills`` are the clips frozen, by default to their middle frame.
    ``progress`` shows how far it is.

    The grade is that of the worst clip and target. It rests on the norm-relative error of relevance as a share of both
    yardsticks (GRADES), on the logits' own error, on the masks (LEAST_IOU outside the BAND), and fails where another
    class is named or explained, or a mask contradicts the relevance beside it.

    Raises InputError without clips, where all of them are noise, and for a clip that does not move, or whose map does
    not change when it is frozen: it would measure nothing.
    """
    if len(clips) == 0 or len(clips) % batch:
        raise InputError(f"a certificate needs clips, a multiple of {batch}, better three or more; got {len(clips)}")
    if all(is_noise(clip) for clip in clips):
        raise InputError("the clips are noise, on which wrong explanations look right: give real or synthetic videos")
    found = _Findings(selection, network, stills)
    for first in watched(range(0, len(clips), batch), progress):
        found.add(run, reference, clips[first : first + batch], first)
    return found.certificate()


def certify_golden(run: Explain, artifact: Artifact, progress: Progress = False) -> Certificate:
    """Compare a runner with the golden cases of its artifact; needs no torch."""
    golden = artifact.golden()
    # Artifacts of earlier versions froze to the first frame; each holds its own.
    clips, stills = (golden[artifact.input_name][case::4] for case in (0, 3))
    return certify(
        run,
        golden_reference(golden, artifact.input_name),
        clips.reshape(-1, *clips.shape[2:]),
        artifact.selection,
        batch=clips.shape[1],
        stills=stills.reshape(-1, *stills.shape[2:]),
        progress=progress,
    )


def golden_reference(golden: dict[str, Array], input_name: str = "clip") -> Explain:
    """Return a function that answers as the golden cases do. It raises InputError for any other clip or target."""
    known = {
        (golden[input_name][index].tobytes(), golden["target"][index].tobytes()): index
        for index in range(len(golden["target"]))
    }
    batch = golden["target"].shape[1]

    def explain(clip: Array, target: Any) -> Explanation:
        targets = np.broadcast_to(np.asarray(target, np.int64).reshape(-1), (batch,))
        index = known.get((clip.tobytes(), targets.tobytes()))
        if index is None:
            raise InputError("the golden cases hold no such clip and target: compare with Zennit instead")
        return Explanation(*(golden[name][index] for name in OUTPUTS))

    return explain


class _Findings:
    """What has been compared so far."""

    def __init__(
        self,
        selection: dict[str, Any],
        network: Callable[[Array], Array] | None = None,
        stills: Array | None = None,
    ) -> None:
        self.selection = selection
        self.stills = stills
        self.network = network
        self.reasons: list[str] = []
        self.notes: list[str] = []
        self.cases: list[Case] = []
        self.comparisons: list[Comparison] = []
        self.yardsticks: list[Yardsticks] = []

    def add(self, run: Explain, reference: Explain, clips: Array, first: int) -> None:
        """Compare one batch of clips, whose first one has the number ``first``."""
        batch = len(clips)

        def ask(explain: Explain, clips: Array, targets: Any) -> Explanation:
            return explain(clips, int(targets[0]) if batch == 1 else targets)

        top = ask(reference, clips, np.full(batch, -1))
        order = np.argsort(-top.logits, axis=1, kind="stable")
        last = top.logits.shape[1] - 1
        wanted = [np.full(batch, -1), order[:, min(1, last)], np.full(batch, last)]
        expected = [(wanted[0], top)]
        for targets in wanted[1:]:
            if not any(np.array_equal(targets, done) for done, _ in expected):
                expected.append((targets, ask(reference, clips, targets)))
        still = frozen(clips) if self.stills is None else self.stills[first : first + batch]
        of_still = ask(reference, still, top.target)
        for index in range(batch):
            self._measure(first + index, clips[index], [right for _, right in expected], of_still, index)
        bare = None if self.network is None else self.network(clips)
        for targets, right in expected:
            try:
                got = ask(run, clips, targets)
            except OutputError as error:
                self.reasons.append(f"clip {first}, target {targets[0]}: {error}")
                continue
            for index in range(batch):
                self._compare(first + index, int(targets[index]), got, right, index, bare)

    def certificate(self) -> Certificate:
        """Return the verdict on all of it."""
        grades = list(GRADES)
        grade = "failed"
        if not self.reasons and all(case.grade in GRADES for case in self.cases):
            grade = grades[max(grades.index(case.grade) for case in self.cases)]
        blind = all(row.class_blind for row in self.yardsticks)
        return Certificate(grade, blind, self.reasons, self.notes, self.cases, self.comparisons, self.yardsticks)

    def _measure(
        self, clip: int, pixels: Array, expected: list[Explanation], of_still: Explanation, index: int
    ) -> None:
        top = expected[0]
        relevance, target = top.relevance[index], top.target[index]
        remedy = "give one in which something moves"
        if (pixels == frozen(pixels[None])[0]).all():
            raise InputError(f"clip {clip} does not move, so it cannot show what a lost motion would be: {remedy}")
        if not relevance.any():
            raise InputError(f"clip {clip}: its map is zero everywhere, nothing can be measured by it: give another")
        still = distance(of_still.relevance[index], relevance)
        if still < LEAST_FROZEN:
            raise InputError(
                f"clip {clip}: its map hardly changes when it is frozen (by {still:.1e} of its norm), so an error "
                f"cannot be read against that: {remedy}, or distrust the method"
            )
        others = [right.relevance[index] for right in expected if right.target[index] != target]
        wrong = min((distance(other, relevance) for other in others), default=math.nan)
        self.yardsticks.append(Yardsticks(clip, still, wrong, not wrong >= CLASS_BLIND * still))

    def _compare(
        self, clip: int, target: int, got: Explanation, right: Explanation, index: int, bare: Array | None
    ) -> None:
        where = f"clip {clip}, target {target}"
        rows = {
            name: _comparison(clip, target, name, getattr(got, name)[index], getattr(right, name)[index])
            for name in ("logits", "relevance", "motion_relevance")
        }
        if bare is not None:
            rows["network"] = _comparison(clip, target, "network", got.logits[index], bare[index])
        self.comparisons += rows.values()
        marks = next(row for row in self.yardsticks if row.clip == clip)
        error = rows["relevance"].norm_error
        logits_error = max(rows[name].norm_error for name in ("logits", "network") if name in rows)
        known = [right.logits] if bare is None else [right.logits, bare]
        case = Case(
            clip,
            target,
            "failed",
            of_frozen=error / marks.frozen,
            of_wrong_class=error / marks.wrong_class if marks.wrong_class else math.inf,
            same_top1=all(got.logits[index].argmax() == one[index].argmax() for one in known),
            same_target=bool(got.target[index] == right.target[index]),
            **_masks(got, right, index, self.selection),
        )
        reasons = _faults(case)
        grade = "failed" if reasons else _grade(case, logits_error, marks.class_blind, right.mask[index].size)
        if grade == "failed" and not reasons:
            reasons = _distances(case, logits_error, marks.class_blind)
        self.reasons += [f"{where}: {reason}" for reason in reasons]
        self.cases.append(Case(**{**asdict(case), "grade": grade}))
        self.notes += [f"{where}: {note}" for note in _explained(got.relevance[index], right.relevance[index])]


def _grade(case: Case, logits_error: float, blind: bool, voxels: int) -> str:
    share = case.of_frozen if blind else max(case.of_frozen, case.of_wrong_class)
    for grade, limit in GRADES.items():
        alike = case.mask_iou >= LEAST_IOU[grade] or case.mask_strays <= STRAY_VOXELS * voxels
        if share <= limit and logits_error <= limit and alike:
            return grade
    return "failed"


def _faults(case: Case) -> list[str]:
    """Say what no error, however small, excuses."""
    faults = []
    if not (case.same_top1 and case.same_target):
        faults.append("another class is named or explained")
    if case.mask_contradictions:
        faults.append(f"{case.mask_contradictions} voxels of the mask contradict the relevance beside it")
    return faults


def _distances(case: Case, logits_error: float, blind: bool) -> list[str]:
    limit = GRADES["approximate"]
    found = []
    if not case.of_frozen <= limit:
        found.append(f"relevance is off by {percent(case.of_frozen)} of the way to a frozen clip's map")
    if not blind and not case.of_wrong_class <= limit:
        found.append(f"relevance is off by {percent(case.of_wrong_class)} of the way to a wrong class's map")
    if not logits_error <= limit:
        found.append(f"the logits are off by {percent(logits_error)} of their norm")
    return found or [f"the masks agree to an IoU of {case.mask_iou:.3f} only"]


def _explained(got: Array, right: Array) -> list[str]:
    """Say what an error above exact consists of, where it is something simple."""
    a, b = got.astype(np.float64), right.astype(np.float64)
    square = float((b * b).sum())
    error = math.sqrt(float(((a - b) ** 2).sum()))
    if not square or error <= GRADES["exact"] * math.sqrt(square):
        return []
    factor = float((a * b).sum()) / square
    if float(np.linalg.norm(a - factor * b)) < 0.1 * error:
        return [f"the map is the reference's times {factor:.4f}: a factor was lost or added"]
    shift = float((a - b).sum() / np.abs(b).sum())
    if abs(shift) > GRADES["faithful"]:
        return [f"the sum of relevance is off by {shift:+.1%} of Σ|R|: some was lost, or handed out twice"]
    return []


def _masks(got: Explanation, right: Explanation, index: int, selection: dict[str, Any]) -> dict[str, Any]:
    margin, threshold = motion_margin(right.relevance[index], **selection)
    inside = np.abs(margin) <= BAND * threshold
    a, b = got.mask[index], right.mask[index]
    either = int((~inside & (a | b)).sum())
    own, own_threshold = motion_margin(got.relevance[index], **selection)
    return {
        "mask_iou": int((~inside & a & b).sum()) / either if either else 1.0,
        "mask_strays": int((~inside & (a != b)).sum()),
        "mask_flips": int((inside & (a != b)).sum()),
        "mask_contradictions": int((((own > 0) != a) & (np.abs(own) > OWN_BAND * own_threshold)).sum()),
    }


def _comparison(clip: int, target: int, output: str, got: Array, right: Array) -> Comparison:
    a, b = got.astype(np.float64).ravel(), right.astype(np.float64).ravel()
    peak = np.abs(b).max()
    return Comparison(
        clip,
        target,
        output,
        norm_error=distance(a, b),
        max_error=float(np.abs(a - b).max() / peak) if peak else float(np.abs(a).max()),
        cosine=cosine(a, b),
        spearman=cosine(*(rank - rank.mean() for rank in (ranks(a), ranks(b)))),
        sum=float(a.sum()),
        reference_sum=float(b.sum()),
    )
