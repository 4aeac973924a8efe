"""Timing that can be trusted: calls in turn, warm-up until stable, percentiles, clips at the pace of a camera.

The standard library and NumPy alone. Seconds throughout; a clock is any function that returns them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

Clock = Callable[[], float]
Laps = dict[str, float]
# A call of round i: what each of its stages took.
Timed = Callable[[int], Laps]
Samples = dict[str, list[float]]

PERCENTILES = (50, 90, 95, 99)

# Threads of a runtime spin for a while after their work; a pause keeps them out of the next call's time.
PAUSE = 0.005
WARM_UP = 2.0
LONGEST_WARM_UP = 60.0
STABLE = 0.10


class Stopwatch:
    """Laps of one call: ``lap(name)`` is the time since the lap before, ``total(name)`` that since the start."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.laps: Laps = {}
        self._clock = clock
        self._start = self._last = clock()

    def lap(self, name: str) -> None:
        """Note what was done since the lap before."""
        now = self._clock()
        self.laps[name], self._last = now - self._last, now

    def total(self, name: str) -> None:
        """Note what was done since the start, up to the last lap."""
        self.laps[name] = self._last - self._start


def interleave(
    calls: Mapping[str, Timed], rounds: Iterator[int], rest: Callable[[float], None] = time.sleep
) -> dict[str, Samples]:
    """Make every call once a round, in turn, so that whatever else the machine does falls on all of them.

    Every second round goes backwards: no call always follows the same one. Return name → stage → seconds per round.
    """
    samples: dict[str, Samples] = {name: {} for name in calls}
    for round_ in rounds:
        for name in calls if round_ % 2 == 0 else reversed(list(calls)):
            rest(PAUSE)
            for stage, seconds in calls[name](round_).items():
                samples[name].setdefault(stage, []).append(seconds)
    return samples


def rounds_for(rounds: int | None, seconds: float | None, clock: Clock = time.perf_counter) -> Iterator[int]:
    """Count ``rounds``, or until ``seconds`` have passed, two at least."""
    end, done = clock() + (seconds or 0.0), 0
    while done < rounds if rounds is not None else done < 2 or clock() < end:
        yield done
        done += 1


def warm_up(
    calls: Mapping[str, Timed],
    clock: Clock = time.perf_counter,
    rest: Callable[[float], None] = time.sleep,
    least: float = WARM_UP,
    most: float = LONGEST_WARM_UP,
) -> dict[str, Any]:
    """Make the calls in turn until they take what they took before: at least ``least`` seconds and four rounds.

    A first round, in which compilers and caches do their work, does not count.
    A call is stable when the median of its last two rounds lies within 10 % of that of the two before. After ``most``
    seconds (and four rounds) it ends all the same. Return ``seconds``, ``rounds``, and the calls that were not stable.
    """
    interleave(calls, iter([0]), rest)
    start, totals = clock(), {name: list[float]() for name in calls}
    moving: list[str] = []
    rounds = 0
    while True:
        for name, samples in interleave(calls, iter([rounds]), rest).items():
            totals[name].append(sum(taken[0] for stage, taken in samples.items() if stage != "end_to_end"))
        rounds += 1
        taken = clock() - start
        if rounds < 4 or taken < least:
            continue
        moving = [name for name, values in totals.items() if not _is_stable(values)]
        if not moving or taken >= most:
            return {"seconds": taken, "rounds": rounds, "not_stable": moving}


def _is_stable(values: list[float]) -> bool:
    before, now = np.median(values[-4:-2]), np.median(values[-2:])
    return bool(abs(now - before) <= STABLE * before)


def statistics(samples: list[float]) -> dict[str, Any]:
    """Return p50, p90, p95, p99 (linear between samples), min, max and n, and the samples themselves."""
    values = np.percentile(samples, PERCENTILES)
    return {
        **{f"p{percentile}": float(value) for percentile, value in zip(PERCENTILES, values, strict=True)},
        "min": min(samples),
        "max": max(samples),
        "n": len(samples),
        "samples": samples,
    }


def paced(
    call: Callable[[int], object],
    clips: int,
    period: float,
    deadline: float,
    clock: Clock = time.perf_counter,
    rest: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Hand over a clip every ``period`` seconds, as a camera does; a clip waits while the one before is worked on.

    The latency of a clip runs from when it was full to when its explanation is there. Return its statistics and the
    share of clips later than ``deadline`` seconds.
    """
    first, latencies = clock(), []
    for index in range(clips):
        full = first + index * period
        if (early := full - clock()) > 0:
            rest(early)
        call(index)
        latencies.append(clock() - full)
    late = sum(latency > deadline for latency in latencies)
    return {"period": period, "deadline": deadline, "miss_rate": late / clips, "latency": statistics(latencies)}
