"""A benchmark from its rows: warm up, time in turn, and put the figures together. NumPy alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..parity.certificate import Certificate
from .conditions import NOISY, MachineWatch, cores, machine
from .rows import Bare, Row, bare_figures, row_figures, timed_bare, timed_row
from .timing import interleave, paced, rounds_for, warm_up
from .windows import Windows

# Says what is being done, to whom waits.
Say = Callable[[str], None]

SCHEMA = "1.0"
FPS = 30.0
# Fewer samples than this leave the 99th percentile to the slowest one.
ENOUGH = 100


@dataclass(frozen=True)
class Pacing:
    """How long to measure, and what against: ``rounds`` or, where None, ``seconds``; ``budget`` seconds end to end.

    ``paced`` adds a run at the pace of a camera of 30 frames per second.
    """

    budget: float = 0.5
    rounds: int | None = 32
    seconds: float | None = None
    paced: bool = False


@dataclass(eq=False)
class Table:
    """Rows to time, bare passes to hold them against, and what was left out and why."""

    rows: list[Row] = field(default_factory=list)
    bares: dict[str, Bare] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def skip(self, method: str, runner: str, precision: str, why: str) -> None:
        """Note what is left out."""
        self.skipped.append({"method": method, "runner": runner, "precision": precision, "why": why})


def parity_figures(certificate: Certificate) -> dict[str, Any]:
    """Return what stands beside a latency: grade, worst norm error and its share of the way to a frozen clip."""
    worst = certificate.worst()
    return {
        "grade": certificate.grade,
        "class_blind": certificate.class_blind,
        "norm_error": worst.norm_error if worst is not None else None,
        "of_frozen": max((case.of_frozen for case in certificate.cases), default=None),
        "mask_iou": min((case.mask_iou for case in certificate.cases), default=None),
        "reasons": certificate.reasons,
        "certificate": certificate.to_dict(),
    }


def measure(
    table: Table,
    windows: Windows,
    pacing: Pacing,
    about: dict[str, Any],
    say: Say,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Warm up, time all rows and bare passes in turn, and return the benchmark as JSON takes it.

    ``about`` holds what is benchmarked: model or artifact, selection, threads.
    """
    calls = {name: timed_bare(bare, windows, clock) for name, bare in table.bares.items()}
    calls |= {row.name: timed_row(row, windows, clock) for row in table.rows}
    say("warming up")
    warmed = warm_up(calls, clock, rest)
    watch = MachineWatch()
    samples = interleave(calls, _said(rounds_for(pacing.rounds, pacing.seconds, clock), say), rest)
    conditions = watch.stop()
    zennit = {row.method: row.name for row in table.rows if row.runner == "zennit"}
    rows = [row_figures(row, samples, pacing.budget, zennit.get(row.method)) for row in table.rows]
    if pacing.paced:
        for row, figures in zip(table.rows, rows, strict=True):
            say(f"paced: {row.name}")
            call = timed_row(row, windows, clock)
            figures["paced"] = paced(call, len(windows), windows.span / FPS, pacing.budget, clock, rest)
    done = len(next(iter(samples[table.rows[0].name].values())))
    return {
        "schema": f"selrel-bench {SCHEMA}",
        "machine": machine(),
        **about,
        "clips": about_clips(windows),
        "budget": pacing.budget,
        "rounds": done,
        "warm_up": warmed,
        "conditions": conditions,
        "rows": rows,
        "bare": [bare_figures(bare, samples) for bare in table.bares.values()],
        "skipped": table.skipped,
        "warnings": _warnings(warmed, conditions, done, len(windows), about["threads"]),
    }


def about_clips(windows: Windows) -> dict[str, Any]:
    """Return which clips are explained, as JSON takes it, and in what time one fills."""
    return {
        "source": windows.source,
        "real": windows.real,
        "windows": [{"video": video, "start": start} for video, start in windows.places],
        "fill": {"frames": windows.span, "fps": FPS, "seconds": windows.span / FPS},
    }


def few_samples(rounds: int) -> list[str]:
    """Return a warning where there are too few samples for a 99th percentile."""
    return [f"{rounds} samples a row: p99 is close to the slowest of them"] if rounds < ENOUGH else []


def silent(text: str) -> None:
    """Say nothing."""


def _said(rounds: Iterable[int], say: Say) -> Iterator[int]:
    for round_ in rounds:
        say(f"round {round_ + 1}")
        yield round_


def _warnings(warmed: dict[str, Any], conditions: dict[str, Any], rounds: int, windows: int, threads: int) -> list[str]:
    found = []
    others, load = conditions["others"], conditions["before"]["load_average"]
    if others is not None and others > NOISY:
        found.append(
            f"other work took {others:.0%} of the machine's cores: timings are too long, measure again when it is idle"
        )
    elif others is None and load is not None and load > threads + 0.5:
        found.append(f"load average {load:.1f} with {threads} threads: other work runs here, timings are too long")
    if threads > cores():
        found.append(f"{threads} threads on {cores()} cores")
    if warmed["not_stable"]:
        names, more = warmed["not_stable"][:3], len(warmed["not_stable"]) - 3
        said = ", ".join(names) + (f" and {more} others" if more > 0 else "")
        found.append(f"not steady to 10 % after {warmed['seconds']:.0f} s of warm-up: {said}")
    if rounds < windows:
        found.append(f"{rounds} rounds used {rounds} of the {windows} windows")
    return found + few_samples(rounds)
