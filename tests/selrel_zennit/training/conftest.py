"""A data set of small videos, and a recipe that is soon through with it."""

from dataclasses import replace

import pytest

from selrel_zennit.evaluate.dataset import read_dataset
from selrel_zennit.training import RECIPES
from training_videos import write_videos


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("squares"))


@pytest.fixture
def data(videos):
    return read_dataset(videos)


@pytest.fixture
def quick():
    """The small recipe, in two batches an epoch."""
    return replace(RECIPES["small"], epochs=3, batch=6)
