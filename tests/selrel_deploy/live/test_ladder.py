"""The deadline ladder, by a clock of the test's own."""

import itertools
import math

import pytest

from fake_clock import FakeClock
from selrel_deploy.live.ladder import LEAST, REST, Ladder, p95, rungs_of


def ladder(*seconds, budget=0.5):
    """Return a ladder of engines that took these seconds at start, and its clock."""
    clock = FakeClock()
    made = Ladder(rungs_of([f"engine {index}" for index in range(len(seconds))]), budget, clock)
    for index, taken in enumerate(seconds):
        if made.measured(index, [taken] * 3):
            break
    made.start()
    return made, clock


def explain(made, clock, seconds, count):
    """Let the rung in use take ``seconds``, ``count`` times; return the rungs after each."""
    rungs = []
    for _ in range(count):
        clock.work(seconds)
        made.took(seconds)
        rungs.append(made.at)
    return rungs


def test_rungs_are_engines_then_fewer_windows():
    assert [(rung.engine, rung.every) for rung in rungs_of(["a", "b"])] == [(0, 1), (1, 1), (1, 2), (1, 4), (1, 8)]


@pytest.mark.parametrize(("values", "expected"), [([3], 3), (range(1, 21), 19), (range(1, 101), 95)])
def test_p95_is_the_nearest_rank(values, expected):
    assert p95(list(values)) == expected


def test_p95_of_nothing_is_no_number():
    assert math.isnan(p95([]))


@pytest.mark.parametrize(("seconds", "at"), [((0.3,), 0), ((0.9, 0.4), 1), ((0.9, 0.9), 2), ((9.0, 9.0), 4)])
def test_it_starts_at_the_best_rung_that_keeps_within_the_budget(seconds, at):
    made, _ = ladder(*seconds)
    assert made.at == at


def test_it_steps_down_under_load_and_comes_back_once():
    made, clock = ladder(0.3, 0.1)
    assert made.at == 0
    made._measured[1] = 0.1
    down = explain(made, clock, 0.8, LEAST)
    assert down == [0] * (LEAST - 1) + [1]
    # The load goes on: 0.4 s here would be 1.2 s in the rung above, so it stays.
    assert set(explain(made, clock, 0.4, 60)) == {1}
    # The load goes. After the rest, and only once the p95 has forgotten it, it steps up and stays there.
    came_back = explain(made, clock, 0.1, 150)
    assert came_back[-1] == 0
    assert sum(a != b for a, b in itertools.pairwise(came_back)) == 1
    assert set(explain(made, clock, 0.3, 100)) == {0}


def test_it_does_not_flutter_between_two_rungs():
    """The rung above takes twice what is expected: it is tried less and less often."""
    made, clock = ladder(0.9, 0.1)
    made._measured = {0: 0.2, 1: 0.1}
    climbs = []
    for _ in range(6000):
        seconds = 0.9 if made.at == 0 else 0.1
        clock.work(seconds)
        change = made.took(seconds)
        if change is not None and change.rung == 0:
            climbs.append(clock.now)
    apart = [after - before for before, after in itertools.pairwise(climbs)]
    assert len(climbs) < 12
    assert apart == sorted(apart)
    assert apart[1] > 1.5 * REST


def test_it_says_where_no_rung_is_quick_enough():
    made, clock = ladder(9.0)
    assert made.at == 3
    assert not made.too_slow
    explain(made, clock, 9.0, LEAST)
    assert made.too_slow
    made.budget = 2.0
    assert not made.too_slow
