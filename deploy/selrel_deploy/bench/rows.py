"""Rows: what a benchmark times in turn, and how their samples become stages and ratios. NumPy alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.explanation import Explanation

from .timing import Clock, Laps, Samples, Stopwatch, Timed, statistics
from .windows import Windows

Array = npt.NDArray[Any]

STAGES = ("read", "explanation", "selection", "end_to_end")


# (clip, class; None or −1: the top one) → its explanation
Explain = Callable[[Array, Any], Explanation]


@dataclass(eq=False)
class Row:
    """One way to an explanation.

    ``explain`` is what the certificate calls. ``step`` does the timed work on a clip and notes its laps: "original"
    and "selection" where they are apart, "explanation" where the selection is inside. ``forward`` and ``selection``
    name the bare passes to compare with; ``ran`` says what ran: device, provider asked and used, hashes.
    """

    method: str
    runner: str
    precision: str
    explain: Explain
    step: Callable[[Array, Stopwatch], None]
    forward: str | None
    selection: str | None
    ran: dict[str, Any]
    memory: dict[str, int | None] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Method, runner and precision: unlike any other row's."""
        return f"{self.method} {self.runner} {self.precision}"


@dataclass(eq=False)
class Bare:
    """A pass alone, in a runner: the network's forward pass, or the selection of a map.

    ``call`` takes NumPy, and returns it where it is compared. ``input`` is what it is called with; None: the clips in
    turn. A pass with an input stands for a part of a graph, which finds its runtime awake and the map in the cache: it
    is called twice, and the second time counts.
    """

    name: str
    runner: str
    precision: str
    call: Callable[[Array], Any]
    input: Array | None = None
    memory: dict[str, int | None] = field(default_factory=dict)
    parity: dict[str, Any] | None = None


def timed_row(row: Row, windows: Windows, clock: Clock = time.perf_counter) -> Timed:
    """Return a function that takes one window from its file to its explanation, and says what each stage took."""
    rotation = windows.rotation()

    def call(index: int) -> Laps:
        rotation.prepare(index)
        watch = Stopwatch(clock)
        clip = rotation.read(index)
        watch.lap("read")
        row.step(clip, watch)
        watch.total("end_to_end")
        laps = watch.laps
        if "original" in laps:
            laps["explanation"] = laps["original"] + laps["selection"]
        return laps

    return call


def timed_bare(bare: Bare, windows: Windows, clock: Clock = time.perf_counter) -> Timed:
    """Return a function that times a bare pass on one window, already read, or on its own input."""
    rotation = windows.rotation()

    def call(index: int) -> Laps:
        value = rotation.read(index) if bare.input is None else bare.input
        if bare.input is not None:
            bare.call(value)
        watch = Stopwatch(clock)
        bare.call(value)
        watch.lap("call")
        return watch.laps

    return call


def row_figures(row: Row, samples: Mapping[str, Samples], budget: float, zennit: str | None) -> dict[str, Any]:
    """Return the figures of a row: stages, ratios of medians, share of the budget, verdict.

    ``zennit`` names the row of the same method in Zennit. A ratio whose other side does not exist is None.
    """
    laps = dict(samples[row.name])
    if row.selection is not None:
        laps["selection"] = samples[row.selection]["call"]
    stages = {stage: statistics(laps[stage]) for stage in STAGES if stage in laps}
    explanation = stages["explanation"]["p50"]
    selection = stages["selection"]["p50"] if "selection" in stages else None
    # Where the selection is inside the graph, what the method costs without it is the rest.
    original = statistics(laps["original"])["p50"] if "original" in laps else explanation - (selection or 0.0)
    p99 = stages["end_to_end"]["p99"]
    return {
        "method": row.method,
        "runner": row.runner,
        "precision": row.precision,
        **row.ran,
        "forward": row.forward,
        "stages": stages,
        "original_p50": original if selection is not None else None,
        "ratios": {
            "over_forward": _ratio(explanation, samples[row.forward]["call"]) if row.forward else None,
            "over_zennit": _ratio(explanation, samples[zennit]["explanation"]) if zennit else None,
            "selection_over_original": selection / original if selection is not None and original > 0 else None,
        },
        "budget": {"share": p99 / budget, "held": p99 <= budget},
        "memory": row.memory,
        "parity": row.parity,
    }


def bare_figures(bare: Bare, samples: Mapping[str, Samples]) -> dict[str, Any]:
    """Return the figures of a bare pass."""
    return {
        "name": bare.name,
        "runner": bare.runner,
        "precision": bare.precision,
        "stages": {"call": statistics(samples[bare.name]["call"])},
        "memory": bare.memory,
        "parity": bare.parity,
    }


def logits_parity(call: Callable[[Array], Array], reference: Callable[[Array], Array], clips: list[Array]) -> Any:
    """Return the largest norm-relative error of logits, and whether each clip keeps its top class."""
    got, right = (np.concatenate([np.asarray(one(clip), np.float64) for clip in clips]) for one in (call, reference))
    norms = np.maximum(np.linalg.norm(right, axis=1), np.finfo(np.float64).tiny)
    return {
        "norm_error": float((np.linalg.norm(got - right, axis=1) / norms).max()),
        "same_top1": bool((got.argmax(1) == right.argmax(1)).all()),
    }


def _ratio(seconds: float, samples: list[float]) -> float:
    return seconds / float(np.median(samples))
