"""The deadline ladder: of several ways to explain, the best within the budget. The standard library alone."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

SAMPLES = 20
"""How many windows the p95 is over."""
LEAST = 5
"""How many it needs to be one."""
ROOM = 0.8
"""A higher rung is tried where it is expected to take at most this share of the budget."""
REST = 10.0
"""Seconds in a rung before a higher one is tried. Doubled each time it did not hold, up to ``LONGEST_REST``."""
LONGEST_REST = 300.0


class Rung(NamedTuple):
    """A way to explain: which engine, and of how many windows one is explained."""

    engine: int
    every: int
    name: str


class Change(NamedTuple):
    """A step from one rung to another, and why, in words."""

    rung: int
    why: str


def rungs_of(engines: Sequence[str]) -> list[Rung]:
    """Return the rungs of engines, the best first: each on every window, then the last on every 2nd, 4th and 8th."""
    last = len(engines) - 1
    ways = [Rung(index, 1, name) for index, name in enumerate(engines)]
    return ways + [Rung(last, every, f"{engines[last]}, one window of {every}") for every in (2, 4, 8)]


def p95(values: Sequence[float]) -> float:
    """Return the 95th percentile, the nearest rank; NaN of nothing."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1] if values else math.nan


class Ladder:
    """Says which rung to use. What counts is the p95 of a rung's seconds, shared out over the windows it stands for.

    It steps down as soon as that exceeds the budget. It steps up only after a rest in which there was room for the
    higher rung, by the ratio of the two as first measured: so it does not flutter.
    """

    def __init__(self, rungs: Sequence[Rung], budget: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rungs, self.budget, self._clock = list(rungs), budget, clock
        self.at = 0
        self.changes: deque[Change] = deque(maxlen=50)
        self._seconds: deque[float] = deque(maxlen=SAMPLES)
        self._measured: dict[int, float] = {}
        self._since, self._rest = clock(), REST
        self._climbed_at = -math.inf

    @property
    def rung(self) -> Rung:
        """The rung in use."""
        return self.rungs[self.at]

    @property
    def p95(self) -> float:
        """The p95 of the seconds of one explanation in the rung in use; NaN before the first."""
        return p95(self._seconds)

    @property
    def too_slow(self) -> bool:
        """Say whether even the last rung exceeds the budget."""
        return (
            self.at == len(self.rungs) - 1 and len(self._seconds) >= LEAST and self.p95 / self.rung.every > self.budget
        )

    def measured(self, engine: int, seconds: Sequence[float]) -> bool:
        """Note what an engine took at start; return whether it keeps within the budget."""
        self._measured[engine] = p95(seconds)
        return self._measured[engine] <= self.budget

    def start(self) -> None:
        """Begin at the best rung that kept within the budget as measured; at the last where none did."""
        for index, rung in enumerate(self.rungs):
            cost = self._measured.get(rung.engine, math.inf) / rung.every
            if cost <= self.budget or index == len(self.rungs) - 1:
                self._go(index, f"measured at start: {self._measured.get(rung.engine, math.nan):.2f} s")
                return

    def took(self, seconds: float) -> Change | None:
        """Note the seconds of an explanation in the rung in use; return the step that follows from it, if any."""
        self._seconds.append(seconds)
        if len(self._seconds) < LEAST:
            return None
        now, cost = self._clock(), self.p95 / self.rung.every
        if cost > self.budget:
            if self.at == len(self.rungs) - 1:
                return None
            if now - self._climbed_at < self._rest:
                self._rest = min(2 * self._rest, LONGEST_REST)
            return self._go(self.at + 1, f"p95 of {self.p95:.2f} s is over the budget of {self.budget:g} s")
        if self.at and now - self._since >= self._rest and self._expected() <= ROOM * self.budget:
            if now - self._climbed_at > LONGEST_REST:
                self._rest = REST
            self._climbed_at = now
            return self._go(self.at - 1, f"p95 of {self.p95:.2f} s leaves room in the budget of {self.budget:g} s")
        return None

    def _expected(self) -> float:
        """Return what the next higher rung is expected to cost: as much more than this one as when first measured."""
        here, higher = self.rung, self.rungs[self.at - 1]
        known = [self._measured.get(rung.engine, math.nan) for rung in (here, higher)]
        ratio = known[1] / known[0] if all(one > 0 for one in known) else 1.0
        return self.p95 * ratio / higher.every

    def _go(self, index: int, why: str) -> Change:
        self._seconds.clear()
        self._since, self.at = self._clock(), index
        self.changes.append(Change(index, why))
        return self.changes[-1]
