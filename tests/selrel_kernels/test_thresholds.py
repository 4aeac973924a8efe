"""select_motion with a threshold per time step, against the definition in NumPy float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from helpers import assert_mask_close
from selrel_kernels import reference, select_motion


def slow_gradient(clip: np.ndarray) -> np.ndarray:
    """|Sobel over time| of [C,T,H,W] after dividing it by Σ|R| of the channel sum; the nearest voxel lies outside."""
    total = np.asarray(clip, np.float64).sum(0)
    if np.abs(total).sum() > 0:
        total = total / np.abs(total).sum()
    padded = np.pad(total, 1, mode="edge")
    steps, height, width = total.shape
    gradient = np.zeros_like(total)
    for t, h, w in itertools.product(range(3), repeat=3):
        weight = (-1, 0, 1)[t] * (1, 2, 1)[h] * (1, 2, 1)[w]
        gradient += weight * padded[t : t + steps, h : h + height, w : w + width]
    return np.abs(gradient)


def random_map(seed: int = 0, shape: tuple[int, ...] = (2, 3, 7, 6, 8)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def usual_thresholds(relevance: Any) -> np.ndarray:
    """Another share of the voxels at each time step."""
    gradients = np.stack([slow_gradient(clip) for clip in np.asarray(relevance, np.float64)])
    steps = gradients.shape[1]
    return np.array([np.quantile(gradients[:, t], (t + 1) / (steps + 1)) for t in range(steps)])


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 3, 7, 6, 8), torch.float32),
        ((2, 3, 7, 6, 8), torch.float64),
        ((2, 3, 5, 6, 8), torch.bfloat16),
        ((2, 3, 5, 6, 8), torch.float16),
        ((1, 1, 2, 1, 1), torch.float32),
        ((3, 2, 4, 1, 9), torch.float32),
    ],
    ids=str,
)
def test_it_is_the_definition(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for seed, factor in itertools.product((0, 1), (1.0, -1e-3)):
        relevance = (random_map(seed, shape) * factor).to(dtype)
        thresholds = usual_thresholds(relevance.double())
        kept = 0
        for given in (thresholds, thresholds.tolist(), torch.from_numpy(thresholds)):
            motion_relevance, mask = select_motion(relevance, thresholds=given)
            assert motion_relevance.dtype == relevance.dtype
            assert torch.equal(motion_relevance, torch.where(mask[:, None], relevance, 0))
            for got, clip in zip(mask, relevance.double().numpy(), strict=True):
                margin = slow_gradient(clip) - thresholds[:, None, None]
                rounding = 32 * np.finfo(np.float32).eps * np.abs(clip).sum(0).max() / np.abs(clip.sum(0)).sum()
                assert_mask_close(got, margin > 0, margin, band=4 * rounding)
            kept = int(mask.sum())
        assert 0 < kept < mask.numel() or mask.numel() <= 2


def test_numpy_and_summed_channels() -> None:
    relevance = random_map(2)
    thresholds = usual_thresholds(relevance)
    motion_relevance, mask = select_motion(relevance, thresholds=thresholds)
    for other in (relevance.numpy(), relevance.numpy().astype(">f4")):
        motion, of_array = select_motion(other, thresholds=thresholds)
        assert np.array_equal(of_array, mask)
        assert np.array_equal(motion, motion_relevance)
    summed = relevance.sum(1)
    motion, of_sum = select_motion(summed, thresholds=thresholds)
    assert torch.equal(of_sum, mask)
    assert torch.equal(motion, torch.where(mask, summed, 0))


def test_scale_and_sign_of_the_map_do_not_matter() -> None:
    relevance = random_map(3)
    thresholds = usual_thresholds(relevance)
    mask = select_motion(relevance, thresholds=thresholds)[1]
    for factor in (2.0**-90, 2.0**-40, 2.0, 2.0**90, -1.0):
        assert torch.equal(select_motion(relevance * factor, thresholds=thresholds)[1], mask)


def test_each_clip_is_divided_by_its_own_mass() -> None:
    one, other = random_map(4, (1, 3, 7, 6, 8)), random_map(5, (1, 3, 7, 6, 8))
    thresholds = usual_thresholds(one)
    both = select_motion(torch.cat([one, 1000 * other]), thresholds=thresholds)[1]
    for got, clip in zip(both, (one, other), strict=True):
        assert torch.equal(got, select_motion(clip, thresholds=thresholds)[1][0])


def test_maps_without_change_keep_nothing() -> None:
    still = random_map(6)[:, :, :1].repeat(1, 1, 7, 1, 1)
    for relevance in (torch.zeros(2, 3, 7, 6, 8), torch.full((1, 3, 7, 6, 8), 0.1), still):
        assert not select_motion(relevance, thresholds=[0.0] * 7)[1].any()


def test_the_comparison_is_strict() -> None:
    # One voxel of 1 in a frame of one pixel: Σ|R| = 1, and |G| = 16 in the steps before and after it.
    relevance = torch.zeros(1, 1, 5, 1, 1)
    relevance[:, :, 2] = 1
    assert not select_motion(relevance, thresholds=[16.0] * 5)[1].any()
    mask = select_motion(relevance, thresholds=[16.0, 15.99, 0.0, 16.0, 0.0])[1]
    assert mask.flatten().tolist() == [False, True, False, False, False]


def test_the_gradient_passes_where_the_mask_is_set() -> None:
    relevance = random_map(7).requires_grad_()
    motion_relevance, mask = select_motion(relevance, thresholds=usual_thresholds(relevance.detach()))
    motion_relevance.sum().backward()
    assert relevance.grad is not None
    assert torch.equal(relevance.grad, mask[:, None].expand_as(relevance).float())


def test_it_can_be_traced() -> None:
    thresholds = tuple(usual_thresholds(random_map(8)).tolist())

    def select(relevance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return reference.select_motion(relevance, thresholds=thresholds)

    graph = make_fx(select)(random_map(9))
    compiled = torch.compile(select, backend="aot_eager", fullgraph=True)
    checked = torch.compile(
        lambda relevance: select_motion(relevance, thresholds=thresholds), backend="aot_eager", fullgraph=True
    )
    for relevance in (random_map(9), 1e-3 * random_map(10)):
        expected = select_motion(relevance, thresholds=thresholds)
        for run in (select, graph, compiled, checked):
            assert all(torch.equal(got, want) for got, want in zip(run(relevance), expected, strict=True))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"thresholds": [0.1] * 6}, ValueError, "one per time step, 7, got 6"),
        ({"thresholds": [0.1] * 6 + [-1.0]}, ValueError, "0 or more, got -1"),
        ({"thresholds": [0.1] * 6 + [float("nan")]}, ValueError, "got nan"),
        ({"thresholds": 0.1}, TypeError, "numbers, one per time step, got 0.1"),
        ({"thresholds": np.full((7, 1), 0.1)}, TypeError, "numbers"),
        ({"thresholds": "0123456"}, TypeError, "numbers"),
        ({"thresholds": [0.1] * 7, "n_sigma": 4.0}, ValueError, "give no n_sigma"),
        ({"thresholds": [0.1] * 7, "sign": "rising"}, ValueError, "give no n_sigma, sign"),
        ({"thresholds": [0.1] * 7, "border": "zero"}, ValueError, "border"),
    ],
)
def test_bad_thresholds(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        select_motion(random_map(), **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_voxel_is_found(bad: float) -> None:
    relevance = random_map(11)
    relevance[1, 2, 3, 4, 5] = bad
    for thresholds in ([0.0] * 7, [1e-3] * 7):
        with pytest.raises(ValueError, match="relevance of clip 1 holds NaN, infinity"):
            select_motion(relevance, thresholds=thresholds)
        mask = reference.select_motion(relevance, thresholds=thresholds)[1]
        assert not mask[1].any()
        assert torch.equal(mask[:1], select_motion(relevance[:1], thresholds=thresholds)[1])


@pytest.mark.cuda
def test_cuda_agrees_with_the_definition() -> None:
    relevance = random_map(12)
    thresholds = usual_thresholds(relevance)
    mask = select_motion(relevance.cuda(), thresholds=thresholds)[1]
    for got, clip in zip(mask, relevance.double().numpy(), strict=True):
        margin = slow_gradient(clip) - thresholds[:, None, None]
        assert_mask_close(got, margin > 0, margin, band=1e-6)
