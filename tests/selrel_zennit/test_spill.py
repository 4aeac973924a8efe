"""What waits on disk comes back as it was, in any order, and nothing stays behind."""

from dataclasses import replace

import numpy as np
import pytest

import selrel_zennit as sr
from selrel_zennit.motion_split import MotionSplit
from selrel_zennit.spill import ArrayFile, StoredExplanations


def explanation(seed: int, unseen: tuple[str, ...] = ()) -> sr.Explanation:
    rng = np.random.default_rng(seed)
    relevance = rng.normal(size=(1, 3, 4, 5)).astype(np.float32)
    part = rng.normal(size=relevance.shape).astype(np.float32)
    one = np.full(1, seed, np.float32)
    return sr.Explanation(
        rng.normal(size=(1, 6)).astype(np.float32),
        np.array([seed % 6]),
        relevance,
        np.where(relevance > 0, relevance, 0).astype(np.float32),
        relevance > 0,
        unseen=unseen,
        split=MotionSplit(one, np.full((1, 3), seed, np.float32), one, part, -part, "frames"),
        frames=rng.integers(0, 256, (*relevance.shape, 3), dtype=np.uint8),
    )


def same(first: sr.Explanation, second: sr.Explanation) -> None:
    assert first.arrays().keys() == second.arrays().keys()
    for name, array in first.arrays().items():
        assert array.dtype == second.arrays()[name].dtype, name
        assert np.array_equal(array, second.arrays()[name]), name


def test_explanations_come_back_in_any_order(tmp_path):
    stored = StoredExplanations(tmp_path)
    for seed in range(4):
        stored.append(explanation(seed))
        same(stored[0], explanation(0))
    for index in (3, 0, 2, -1, 1):
        same(stored[index], explanation(index % 4))
    with pytest.raises(IndexError, match="clip 4 of 4"):
        stored[4]
    del stored
    assert not list(tmp_path.iterdir())


def test_the_file_is_that_of_the_whole_batch(tmp_path):
    """What one clip knows of unseen operations holds for all, as in a batch that is held in memory."""
    stored, every = StoredExplanations(), []
    for seed, unseen in enumerate([(), ("a",), ("a", "b")]):
        stored.append(explanation(seed, unseen))
        every.append(replace(explanation(seed), unseen=("a", "b")))
    stored.save(tmp_path / "x.npz")
    loaded = sr.Explanation.load(tmp_path / "x.npz")
    assert len(loaded) == 3
    for index, one in enumerate(every):
        same(loaded[index], one)
        same(stored[index], one)


def test_arrays_of_another_shape_or_type_are_refused():
    file = ArrayFile(None, np.zeros((1, 2), np.float32))
    file.append(np.ones((1, 2), np.float32))
    for wrong in (np.zeros((1, 3), np.float32), np.zeros((1, 2))):
        with pytest.raises(ValueError, match=r"float32 \(1, 2\)"):
            file.append(wrong)
    assert len(file) == 1
    assert file[0].tolist() == [[1, 1]]
    with pytest.raises(IndexError):
        file[1]
