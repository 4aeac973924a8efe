"""Metrics against slow second opinions: voxel by voxel, by enumeration of ties, by sampling, in NumPy float64."""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from networks import small_c3d, snapshot
from selrel_zennit import METHODS, MotionSelection, explain
from selrel_zennit.attribution import Gradient
from selrel_zennit.comparison import versus
from selrel_zennit.metrics import (
    ClassSensitivity,
    class_sensitivity,
    flow_precision,
    kept_area,
    layer_randomisation,
    mass_inside,
    planted_scores,
    rank_accuracy,
    sanity_check,
    swept,
    top_share,
)
from selrel_zennit.synthetic import SyntheticSpec, make_clip

SELECTION = MotionSelection(n_sigma=1)


def random_case(seed, shape=(3, 2, 4, 5), levels=None):
    """Return a signed map, with many ties where ``levels`` is given, and a region."""
    rng = np.random.default_rng(seed)
    relevance = rng.normal(size=shape) if levels is None else rng.integers(-levels, levels + 1, shape)
    return relevance.astype(np.float32), rng.random(shape) < 0.3


def voxels(shape):
    return itertools.product(*map(range, shape))


def same(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


# Shares of relevance


@pytest.mark.parametrize("levels", [None, 2])
def test_mass_and_area_are_those_of_a_loop(levels):
    relevance, region = random_case(0, levels=levels)
    for clip, inside, mass, area in zip(
        relevance, region, mass_inside(relevance, region), kept_area(relevance, region), strict=True
    ):
        sizes = {at: abs(float(clip[at])) for at in voxels(clip.shape)}
        same(mass, sum(size for at, size in sizes.items() if inside[at]) / sum(sizes.values()))
        nonzero = [at for at, size in sizes.items() if size]
        same(area, sum(bool(inside[at]) for at in nonzero) / len(nonzero))


def test_kept_area_and_mass_are_those_of_the_explanation():
    model = small_c3d()
    result = explain(model, torch.randn(2, 3, 16, 16, 16) * 50, selection=SELECTION)
    area, mass = result.motion_share()
    same(kept_area(result.relevance, result.mask), area)
    same(mass_inside(result.relevance, result.mask), mass)


def test_one_clip_and_a_batch_agree():
    relevance, region = random_case(1)
    flow = np.random.default_rng(1).normal(size=(3, 1, 4, 5, 2))
    for score in (
        lambda i: mass_inside(relevance[i], region[i]),
        lambda i: kept_area(relevance[i], region[i]),
        lambda i: rank_accuracy(relevance[i], region[i]),
        lambda i: top_share(relevance[i], 7, region[i]).mass,
        lambda i: flow_precision(relevance[i], flow[i]).lift,
    ):
        same([score(index) for index in range(3)], score(slice(None)))
        assert np.shape(score(0)) == ()


def test_empty_maps_and_regions_have_no_score():
    relevance, region = random_case(2)
    zeros, nowhere = np.zeros_like(relevance), np.zeros_like(region)
    assert np.isnan(mass_inside(zeros, region)).all()
    assert np.isnan(kept_area(zeros, region)).all()
    assert np.isnan(rank_accuracy(relevance, nowhere)).all()
    assert np.isnan(top_share(zeros, 3, region).mass).all()
    same(mass_inside(relevance, nowhere), np.zeros(3))
    same(rank_accuracy(zeros, region), region.mean((1, 2, 3)))  # all tied: chance


def test_a_region_of_another_shape_is_refused():
    relevance, region = random_case(3)
    for wrong in (region[0], region[:, :1], region.astype(np.float32)):
        with pytest.raises(ValueError, match=r"region bool of its shape"):
            mass_inside(relevance, wrong)
    with pytest.raises(ValueError, match=r"count must lie in 0…40, got 41"):
        top_share(relevance, 41, region)
    with pytest.raises(ValueError, match=r"flow must be \(3, 1, 4, 5, 2\)"):
        flow_precision(relevance, np.zeros((3, 2, 4, 5, 2)))


# The top voxels, and their ties


def all_tops(size, count):
    """Yield every set of ``count`` places that some order of the ties puts on top."""
    for places in itertools.combinations(range(len(size)), count):
        rest = [size[at] for at in range(len(size)) if at not in places]
        if not rest or min(size[at] for at in places) >= max(rest):
            yield places


@pytest.mark.parametrize("count", range(1, 9))
def test_ties_count_by_expectation(count):
    """Every order of the ties is written down, and their mean taken."""
    for seed in range(8):
        relevance, region = random_case(seed, shape=(2, 2, 2), levels=2)
        size, inside = np.abs(relevance).ravel().astype(float), region.ravel()
        tops = list(all_tops(size, count))
        area, mass = top_share(relevance, count, region)
        same(area, np.mean([sum(inside[at] for at in top) / count for top in tops]))
        whole = [sum(size[at] for at in top) for top in tops]
        part = [sum(size[at] * inside[at] for at in top) for top in tops]
        same(mass, np.mean(part) / whole[0] if whole[0] else np.nan)
        assert max(whole) - min(whole) < 1e-9


def test_rank_accuracy_of_a_selected_map_is_the_mean_over_random_orders():
    relevance, region = random_case(5, shape=(4, 8, 8))
    relevance[np.random.default_rng(0).random(relevance.shape) < 0.9] = 0  # fewer voxels are left than the region has
    assert 0 < (relevance != 0).sum() < region.sum()
    rng, count = np.random.default_rng(1), int(region.sum())
    drawn = []
    for _ in range(4000):
        order = np.lexsort((rng.random(relevance.size), -np.abs(relevance).ravel()))
        drawn.append(region.ravel()[order[:count]].mean())
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(rank_accuracy(relevance, region) - np.mean(drawn)) < 4 * error


def test_rank_accuracy_without_ties_is_a_sort():
    relevance, region = random_case(6)
    for clip, inside, got in zip(relevance, region, rank_accuracy(relevance, region), strict=True):
        top = np.argsort(-np.abs(clip).ravel())[: inside.sum()]
        same(got, inside.ravel()[top].mean())


# Flow


@pytest.mark.parametrize(("threshold", "sigma"), [(10 / 255, 1.0), (0.0, 0.0), (0.5, 2.0), (1.0, 0.0)])
def test_flow_precision_is_that_of_a_loop(threshold, sigma):
    relevance, _ = random_case(7, levels=3)
    flow = np.random.default_rng(7).integers(-2, 3, (3, 1, 4, 5, 2)).astype(np.float32)
    result = flow_precision(relevance, flow, relevance_threshold=threshold, flow_sigma=sigma)
    for index, (clip, motion) in enumerate(zip(relevance, flow, strict=True)):
        peak = max(float(clip[at]) for at in voxels(clip.shape))
        positive = moving = both = 0
        for t in range(len(motion)):
            sizes = [[float(x) ** 2 + float(y) ** 2 for x, y in row] for row in motion[t]]
            deviation = np.std(np.sqrt(np.ravel(sizes)))
            for y, x in voxels(clip.shape[1:]):
                relevant = clip[t, y, x] > 0 and clip[t, y, x] >= threshold * peak
                moves = np.sqrt(sizes[y][x]) > sigma * deviation
                positive, moving, both = positive + relevant, moving + moves, both + (relevant and moves)
        same(result.precision[index], both / positive)
        same(result.base_rate[index], moving / motion[..., 0].size)
        same(result.lift[index], (both / positive) / (moving / motion[..., 0].size))


def test_flow_precision_is_not_defined_without_relevance_or_flow():
    relevance, flow = np.ones((2, 3, 4, 4), np.float32), np.zeros((2, 2, 4, 4, 2), np.float32)
    relevance[0] = -1
    result = flow_precision(relevance, flow)
    same(result.precision, [np.nan, 0])
    same(result.lift, [np.nan, np.nan])


def test_the_last_frame_does_not_count():
    relevance, _ = random_case(8)
    relevance[:, -1] = np.minimum(relevance[:, -1], 0)
    flow = np.random.default_rng(8).normal(size=(3, 1, 4, 5, 2))
    before = flow_precision(relevance, flow)
    relevance[:, -1] = relevance.min() - 1
    same(flow_precision(relevance, flow).precision, before.precision)


def test_swept_looks_one_frame_back_and_one_ahead():
    _, region = random_case(9, shape=(2, 5, 3, 3))
    wide = swept(region)
    for index, t, y, x in voxels(region.shape):
        assert wide[index, t, y, x] == any(region[index, s, y, x] for s in range(5) if abs(s - t) <= 1)
    np.testing.assert_array_equal(swept(region[1]), wide[1])


def test_planted_scores_know_a_perfect_and_a_wrong_map():
    clip = make_clip(SyntheticSpec(frames=4, height=32, width=32), seed=3, index=0)
    truth = (clip.causal_mask, clip.distractor_mask, clip.flow)
    perfect = planted_scores(clip.causal_mask.astype(np.float32), *truth)
    assert (perfect["causal_mass"], perfect["rank_accuracy"], perfect["scene_mass"]) == (1, 1, 0)
    assert perfect["flow_lift"] > 2
    wrong = planted_scores(clip.distractor_mask.astype(np.float32), *truth)
    assert (wrong["causal_mass"], wrong["distractor_mass"]) == (0, 1)
    noise = planted_scores(np.random.default_rng(0).normal(size=clip.causal_mask.shape).astype(np.float32), *truth)
    same(noise["causal_mass"] + noise["distractor_mass"] + noise["scene_mass"], 1)
    assert noise["rank_accuracy"] == pytest.approx(clip.causal_mask.mean(), abs=0.05)


# Two classes


@pytest.fixture(scope="module")
def model():
    return small_c3d()


@pytest.fixture(scope="module")
def clip():
    return torch.randn(2, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0)) * 60


def test_class_sensitivity_is_that_of_two_explanations(model, clip):
    result = class_sensitivity(model, clip, "gradient", selection=SELECTION)
    first = explain(model, clip, "gradient", selection=SELECTION)
    second = explain(model, clip, "gradient", result.other.tolist(), selection=SELECTION)
    assert result.target.tolist() == first.target.tolist()
    for index in range(len(clip)):
        a, b = (one.relevance[index].astype(np.float64).ravel() for one in (first, second))
        same(result.cosine[index], np.dot(a, b) / np.sqrt((a**2).sum() * (b**2).sum()))
        a, b = (one.motion_relevance[index].astype(np.float64).ravel() for one in (first, second))
        same(result.motion_cosine[index], np.dot(a, b) / np.sqrt((a**2).sum() * (b**2).sum()))
        a, b = ({tuple(at) for at in np.argwhere(one.mask[index])} for one in (first, second))
        same(result.mask_iou[index], len(a & b) / len(a | b))


def test_dtd_is_blinder_to_the_class_than_the_gradient(model, clip):
    assert class_sensitivity(model, clip, "dtd").cosine.min() > 0.99
    assert class_sensitivity(model, clip, "gradient").cosine.max() < 0.9


def test_nothing_selected_has_no_iou(model, clip):
    result = class_sensitivity(model, clip, "gradient", selection=MotionSelection(n_sigma=1e6))
    assert np.isnan(result.mask_iou).all()
    assert np.isnan(result.motion_cosine).all()
    assert np.isfinite(result.cosine).all()


# Randomised layers


def test_layers_are_drawn_anew_from_the_last_to_the_first(model, clip):
    """A second opinion: a deep copy, whose layers are drawn anew by hand in the order of the topology."""
    steps = layer_randomisation(model, clip, "gradient", selection=SELECTION, seed=5)
    names = ["conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b", "fc6", "fc7", "fc8"]
    assert [step.layer for step in steps] == names[::-1]
    reference = explain(model, clip, "gradient", selection=SELECTION)
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(5)
    for step in steps:
        layer = other.get_submodule(step.layer)
        for old in (layer.weight, layer.bias):
            noise = torch.randn(old.shape, generator=generator)
            old.data = old.data.mean() + old.data.std(correction=0) * noise
        result = explain(other, clip, "gradient", reference.target.tolist(), selection=SELECTION)
        for index in range(len(clip)):
            a, b = (one.relevance[index].astype(np.float64).ravel() for one in (reference, result))
            same(round(step.cosine[index], 6), round(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b), 6))
            assert step.spearman[index] == pytest.approx(spearmanr(a, b).statistic, abs=1e-6)
        union = (reference.mask | result.mask).sum((1, 2, 3))
        same(step.mask_iou, (reference.mask & result.mask).sum((1, 2, 3)) / union)


def test_the_gradient_drifts_away_and_a_fixed_map_does_not(model, clip, monkeypatch):
    assert abs(layer_randomisation(model, clip, "gradient")[-1].cosine).max() < 0.5

    class Picture(Gradient):
        def __call__(self, input, attr_output=None):
            output, _ = super().__call__(input, attr_output)
            return output, input.clone()

    entry = METHODS["gradient"]
    monkeypatch.setitem(METHODS, "picture", type(entry)("picture", Picture, "", "", 2.0, False))
    for step in layer_randomisation(model, clip, "picture"):
        same(step.cosine, [1, 1])
        same(step.spearman, [1, 1])
        same(step.mask_iou, [1, 1])
    assert any(
        "hardly depends on the weights" in finding for finding in sanity_check(model, clip, "picture")["findings"]
    )


@pytest.mark.parametrize("method", ["dtd", "gradient", "gradcam"])
def test_the_model_is_left_as_it_was(model, clip, method):
    before = snapshot(model, clip)
    values = {name: value.clone() for name, value in model.state_dict().items()}
    layer_randomisation(model, clip, method)
    sanity_check(model, clip[:1], method)
    assert snapshot(model, clip) == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


def test_the_model_is_left_as_it_was_after_an_error(model, clip, monkeypatch):
    calls = []

    def failing(built):
        calls.append(built)
        if len(calls) == 4:
            raise RuntimeError("on purpose")
        return METHODS["gradient"].build(built)

    monkeypatch.setitem(METHODS, "failing", type(METHODS["dtd"])("failing", failing, "", "", 2.0, False))
    before = snapshot(model, clip)
    with pytest.raises(RuntimeError, match="on purpose"):
        layer_randomisation(model, clip, "failing")
    assert snapshot(model, clip) == before


def test_a_batch_norm_keeps_its_statistics(clip):
    network = torch.nn.Sequential(
        torch.nn.Conv3d(3, 4, 3), torch.nn.BatchNorm3d(4), torch.nn.Flatten(), torch.nn.Linear(4 * 14**3, 3)
    ).eval()
    before = snapshot(network, clip)
    assert [step.layer for step in layer_randomisation(network, clip, "gradient")] == ["3", "1", "0"]
    assert snapshot(network, clip) == before


def test_sanity_check_is_plain_json_and_says_what_is_wrong(model, clip):
    report = json.loads(json.dumps(sanity_check(model, clip, "dtd", selection=SELECTION), allow_nan=False))
    assert set(report) == {"class_sensitivity", "layers", "findings"}
    assert report["class_sensitivity"]["cosine"] == pytest.approx(
        ClassSensitivity.of(versus(model, clip, "dtd")).cosine.mean(), abs=1e-6
    )
    assert len(report["layers"]) == 11
    assert "hardly tells classes apart" in report["findings"][0]
    nothing = sanity_check(model, clip, "gradient", selection=MotionSelection(n_sigma=1e6))
    assert nothing["class_sensitivity"]["mask_iou"] is None
    assert not nothing["findings"]
