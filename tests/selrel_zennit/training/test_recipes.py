"""The paper's numbers, and what the plateau and the cycle make of a learning rate."""

import pytest
import torch
from torch import nn

from selrel_zennit import InputError
from selrel_zennit.training import RECIPES, Recipe
from selrel_zennit.training.loop import _Run


def run(recipe, batches=10):
    return _Run(nn.Linear(2, 2), recipe, 0, 2, batches)


def test_the_paper():
    paper = RECIPES["paper"]
    assert (paper.optimizer, paper.learning_rate, paper.batch, paper.iterations) == ("sgd", 1e-3, 32, 60_000)
    assert (paper.zoom, paper.brightness, paper.flip, paper.standardise, paper.batch_norms) == (
        1,
        0,
        False,
        False,
        False,
    )
    # 9,537 videos of UCF-101's first split are 299 batches.
    assert paper.epochs_of(299) == 201
    assert RECIPES["small"].epochs_of(299) == 60


def test_the_rate_falls_after_ten_epochs_without_progress():
    training = run(RECIPES["paper"])
    rates = []
    for _ in range(32):
        training.schedule.step(1.0)
        rates.append(training.rate)
    # The first epoch sets the mark; ten stagnate after it, and each further fall takes ten.
    assert rates[:10] == [1e-3] * 10
    assert rates[10:20] == pytest.approx([1e-4] * 10)
    assert rates[20:30] == pytest.approx([1e-5] * 10)
    assert rates[30:] == pytest.approx([1e-6] * 2)
    assert training.ended


def test_progress_keeps_the_rate():
    training = run(RECIPES["paper"])
    for step in range(30):
        training.schedule.step(1 - step / 100)
    assert training.rate == 1e-3
    assert not training.ended


def test_one_cycle_rises_and_ends_near_nothing():
    training = run(Recipe("r", optimizer="adamw", learning_rate=0.1, schedule="one-cycle", epochs=5))
    rates = [training.rate]
    for _ in range(49):
        training.optimizer.step()
        training.schedule.step()
        rates.append(training.rate)
    assert max(rates) == pytest.approx(0.1, rel=0.01)
    assert rates[0] == pytest.approx(0.1 / 25)
    assert rates[-1] < 1e-5
    assert rates.index(max(rates)) == pytest.approx(15, abs=1)
    assert isinstance(training.optimizer, torch.optim.AdamW)


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch", 0), ("epochs", 0), ("learning_rate", 0.0), ("learning_rate", float("nan")), ("zoom", 0.5)],
)
def test_numbers_that_cannot_be(field, value):
    with pytest.raises(InputError, match=field.replace("_", " ")):
        Recipe("r", **{field: value})
