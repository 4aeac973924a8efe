"""The benchmark's arithmetic with a clock of the test's own, its percentiles, warm-up and pace."""

import itertools
import math

import numpy as np
import pytest

from fake_clock import FakeClock
from selrel_deploy.bench import timing
from selrel_deploy.bench.timing import Stopwatch, interleave, paced, rounds_for, statistics, warm_up


@pytest.fixture
def clock():
    return FakeClock()


# --- timing ---


@pytest.mark.parametrize("count", [1, 2, 7, 100, 257])
def test_percentiles_are_linear_between_sorted_samples(count):
    samples = np.random.default_rng(count).gamma(2.0, size=count).tolist()
    found = statistics(samples)
    for percentile in (50, 90, 95, 99):
        place = percentile / 100 * (count - 1)
        low, high = sorted(samples)[math.floor(place)], sorted(samples)[math.ceil(place)]
        assert found[f"p{percentile}"] == pytest.approx(low + (high - low) * (place - math.floor(place)))
    assert (found["min"], found["max"], found["n"]) == (min(samples), max(samples), count)
    assert found["samples"] == samples


def test_calls_are_made_in_turn_and_every_second_round_backwards(clock):
    made = []

    def call(name):
        return lambda round_: made.append((round_, name)) or {"x": float(round_)}

    samples = interleave({name: call(name) for name in "abc"}, iter(range(3)), clock.rest)
    assert [name for _, name in made] == [*"abc", *"cba", *"abc"]
    assert [round_ for round_, _ in made] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert samples == {name: {"x": [0.0, 1.0, 2.0]} for name in "abc"}
    assert clock.rested == [timing.PAUSE] * 9


def test_rounds_are_counted_or_timed(clock):
    assert list(rounds_for(5, None, clock)) == [0, 1, 2, 3, 4]
    assert [clock.work(1) or index for index in rounds_for(None, 3.5, clock)] == [0, 1, 2, 3]
    assert [clock.work(10) or index for index in rounds_for(None, 3.5, clock)] == [0, 1]


def test_warm_up_goes_on_until_calls_are_stable(clock):
    taken = itertools.chain([9.0, 4.0, 3.0, 2.0, 1.0], itertools.repeat(0.5))

    def settles(round_):
        seconds = next(taken)
        clock.work(seconds)
        return {"call": seconds, "end_to_end": 1e9}

    found = warm_up({"settles": settles}, clock, clock.rest)
    # Not counted: 9. Then 4 3 2 1 ½ ½ ½ ½: only the last four are within 10 % of each other.
    assert found["rounds"] == 8
    assert found["not_stable"] == []
    assert found["seconds"] == pytest.approx(4 + 3 + 2 + 1 + 4 * 0.5 + 8 * timing.PAUSE)


def test_warm_up_takes_two_seconds_and_gives_up_in_time(clock):
    def steady(round_):
        clock.work(0.1)
        return {"call": 0.1}

    assert warm_up({"steady": steady}, clock, clock.rest)["seconds"] >= 2.0
    doubling = itertools.count()

    def unsteady(round_):
        clock.work(5)
        return {"call": 2.0 ** next(doubling)}

    found = warm_up({"steady": steady, "unsteady": unsteady}, clock, clock.rest, most=30)
    assert found["not_stable"] == ["unsteady"]
    assert 30 <= found["seconds"] <= 36


def test_laps_and_totals(clock):
    watch = Stopwatch(clock)
    clock.work(1)
    watch.lap("read")
    clock.work(2)
    watch.lap("explanation")
    clock.work(4)
    watch.total("end_to_end")
    assert watch.laps == {"read": 1.0, "explanation": 2.0, "end_to_end": 3.0}


def test_paced_clips_wait_for_the_one_before(clock):
    seconds = iter([0.3, 0.9, 0.3, 0.1])
    found = paced(lambda index: clock.work(next(seconds)), 4, period=0.5, deadline=0.6, clock=clock, rest=clock.rest)
    # Full at 0, ½, 1, 1½; done at 0.3, 1.4, 1.7, 1.8.
    assert found["latency"]["samples"] == pytest.approx([0.3, 0.9, 0.7, 0.3])
    assert found["miss_rate"] == 0.5
    assert clock.rested == pytest.approx([0.2])
