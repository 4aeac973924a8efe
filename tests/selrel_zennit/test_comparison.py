"""Two classes of one clip, against two explanations and NumPy float64."""

import json

import numpy as np
import pytest
import torch

from networks import small_c3d
from selrel_zennit import InputError, MotionSelection, build_method, explain
from selrel_zennit.comparison import Versus, runner_up, versus
from selrel_zennit.outputs.versus import versus_image, write_versus
from selrel_zennit.pipeline import explain_video

SELECTION = MotionSelection(n_sigma=1)


def same(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.fixture(scope="module")
def model():
    return small_c3d()


@pytest.fixture(scope="module")
def clip():
    return torch.randn(2, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0)) * 60


def test_versus_explains_both_classes(model, clip):
    pair = versus(model, clip, "gradient", selection=SELECTION)
    order = np.argsort(-pair.first.logits, axis=1)
    assert pair.first.target.tolist() == order[:, 0].tolist()
    assert pair.second.target.tolist() == order[:, 1].tolist()
    for one in (pair.first, pair.second):
        alone = explain(model, clip, "gradient", one.target.tolist(), selection=SELECTION)
        np.testing.assert_array_equal(one.relevance, alone.relevance)
        np.testing.assert_array_equal(one.mask, alone.mask)


def test_versus_compares_maps_of_the_same_weight(model, clip):
    pair = versus(model, clip, "gradient", target=0, other=3, selection=SELECTION)
    for index in range(len(clip)):
        a, b = (one.relevance[index].astype(np.float64) for one in (pair.first, pair.second))
        kept = [one.mask[index] for one in (pair.first, pair.second)]
        a, b = a / np.abs(a).sum(), b / np.abs(b).sum()
        np.testing.assert_allclose(pair.difference[index], a - b, atol=1e-9)
        np.testing.assert_allclose(pair.motion_difference[index], a * kept[0] - b * kept[1], atol=1e-9)
        same(round(pair.distance[index], 6), round(np.abs(a - b).sum() / 2, 6))
    swapped = Versus(pair.second, pair.first)
    np.testing.assert_allclose(swapped.difference, -pair.difference, atol=1e-12)


def test_versus_refuses_one_class_twice(model, clip):
    with pytest.raises(InputError, match=r"class 2 stands on both sides"):
        versus(model, clip, "gradient", target=2, other=2)
    with pytest.raises(InputError, match=r"options \(layer\) go with a method's name"):
        versus(model, clip, build_method("gradient", model), layer="relu5b")
    with pytest.raises(InputError, match="one class"):
        runner_up(np.zeros((1, 1)), np.zeros(1, int))


def test_runner_up_leaves_the_target_out():
    logits = np.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [-9.0, -5.0, -7.0]])
    assert runner_up(logits, np.array([0, 2, 1])).tolist() == [2, 0, 2]


def test_a_map_of_zeros_has_no_distance_and_other_shapes_are_refused(model, clip):
    pair = versus(model, clip, "gradient", target=0, other=1)
    empty = {"relevance": 0 * pair.second.relevance, "motion_relevance": 0 * pair.second.relevance}
    dark = type(pair.second)(**{**vars(pair.second), **empty})
    against = Versus(pair.first, dark)
    assert np.isnan(against.distance).all()
    assert np.isfinite(against.difference).all()
    same(np.abs(against.difference).sum((1, 2, 3)), [1, 1])
    with pytest.raises(ValueError, match="maps of the same clips"):
        Versus(pair.first, explain(model, clip[:1], "gradient", target=1))


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """Write versus.png and versus.npz of two clips; return the folder, the summary's entry and both explanations."""
    frames = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)
    attributor = build_method("gradient", model)
    sides = [
        explain_video(model, frames, attributor, target, selection=SELECTION, all_clips=True, frozen=False)
        for target in (1, 4)
    ]
    folder = tmp_path_factory.mktemp("versus")
    entry = write_versus(folder, *sides, names=["zero", "one", "two", "three", "four"], title="gradient")
    return folder, entry, sides


def test_versus_files_hold_the_other_class_and_the_difference(written):
    folder, entry, (first, second) = written
    pair = Versus(first.explanation, second.explanation)
    with np.load(folder / "versus.npz") as arrays:
        np.testing.assert_array_equal(arrays["relevance"], second.explanation.relevance)
        np.testing.assert_array_equal(arrays["mask"], second.explanation.mask)
        np.testing.assert_array_equal(arrays["difference"], pair.difference)
        assert arrays["target"].tolist() == [4, 4]
    assert (entry["target"], entry["target_name"]) == (4, "four")
    assert [clip["start"] for clip in entry["clips"]] == [0, 16]
    same([clip["distance"] for clip in entry["clips"]], pair.distance)
    json.dumps(entry, allow_nan=False)


def test_versus_picture_shows_both_maps_and_their_difference(written):
    _, _, (first, second) = written
    pair = Versus(first.explanation, second.explanation)
    swapped = Versus(second.explanation, first.explanation)
    shown = [versus_image(first.pixels[0], one, 0, names=("a", "b"), title="") for one in (pair, swapped)]
    row, left, right = 122 + 30, 20, 20 + 8 * 126 - 4
    rows = [[image[84 + k * row : 84 + k * row + 122, left:right] for k in range(5)] for image in shown]
    np.testing.assert_array_equal(rows[0][0], rows[1][0])  # the input
    np.testing.assert_array_equal(rows[0][1], rows[1][2])  # A's map stands where B's stood
    np.testing.assert_array_equal(rows[0][2], rows[1][1])
    for number in (3, 4):
        assert (rows[0][number] != rows[1][number]).any()  # the sign is seen
