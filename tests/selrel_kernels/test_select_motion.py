"""select_motion against a slow NumPy float64 version, written from the table of presets."""

from __future__ import annotations

import itertools
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from helpers import assert_mask_close
from selrel_kernels import reference, select_motion

PRESETS: dict[str, dict[str, str]] = {
    "default": {"sign": "absolute", "sigma": "signed", "border": "replicate", "normalise": "none"},
    "paper": {"sign": "rising", "sigma": "signed", "border": "zero", "normalise": "none"},
    "author-2020": {"sign": "falling", "sigma": "signed", "border": "zero", "normalise": "author-2020"},
    "author-2021": {"sign": "absolute", "sigma": "absolute", "border": "zero", "normalise": "none"},
}
# The same presets as the table words them: direction of the kernel over time, and what is compared with n·σ.
TABLE = {
    "default": (+1, "|G|", "G", "replicate", False),
    "paper": (+1, "G", "G", "zero", False),
    "author-2020": (-1, "G", "G", "zero", True),
    "author-2021": (-1, "|G|", "|G|", "zero", False),
}
SETTINGS = [
    dict(zip(("sign", "sigma", "border", "normalise"), values, strict=True))
    for values in itertools.product(
        ("absolute", "rising", "falling"), ("signed", "absolute"), ("replicate", "zero"), ("none", "author-2020")
    )
]
EPS32 = float(np.finfo(np.float32).eps)


class Slow(NamedTuple):
    mask: np.ndarray  # bool [T,H,W]
    margin: np.ndarray  # float64 [T,H,W], compared value − n·σ
    gradient: np.ndarray  # float64 [T,H,W], R[t+1] − R[t−1] whatever the direction
    rounding: float  # what one float32 rounding of the sum of all weighted terms can amount to


def slow_selection(clip: np.ndarray, n: float, table: tuple[int, str, str, str, bool]) -> Slow:
    """One clip, [C,T,H,W] or [T,H,W]: 27 taps on an explicitly padded copy, in float64."""
    direction, compared, spread, border, normalised = table
    clip = np.asarray(clip, np.float64)
    channels = clip if clip.ndim == 4 else clip[None]
    size, total = np.abs(channels).sum(0).max(), channels.sum(0)
    if normalised and np.abs(total).max() > 0:
        size, total = size / np.abs(total).max(), total / np.abs(total).max()
        if total.min() < 0 and total.max() > total.min():
            size, total = size / (total.max() - total.min()), (total - total.min()) / (total.max() - total.min())
        elif total.min() < 0:
            total = np.zeros_like(total)
    steps, height, width = total.shape
    outside = np.zeros((steps + 2, height + 2, width + 2))
    for t, h, w in itertools.product(range(-1, steps + 1), range(-1, height + 1), range(-1, width + 1)):
        inside = 0 <= t < steps and 0 <= h < height and 0 <= w < width
        if inside or border == "replicate":
            near = (min(max(t, 0), steps - 1), min(max(h, 0), height - 1), min(max(w, 0), width - 1))
            outside[t + 1, h + 1, w + 1] = total[near]
    gradient = np.zeros_like(total)
    for t, h, w in itertools.product(range(3), repeat=3):
        weight = (-1, 0, 1)[t] * (1, 2, 1)[h] * (1, 2, 1)[w]
        gradient += weight * outside[t : t + steps, h : h + height, w : w + width]
    directed = direction * gradient
    sigma = np.std(np.abs(directed) if spread == "|G|" else directed, ddof=1)
    margin = (np.abs(directed) if compared == "|G|" else directed) - n * sigma
    return Slow(margin > 0, margin, gradient, 32 * EPS32 * size)


def as_table(settings: dict[str, str]) -> tuple[int, str, str, str, bool]:
    direction = -1 if settings["sign"] == "falling" else +1
    compared = "|G|" if settings["sign"] == "absolute" else "G"
    spread = {"signed": "G", "absolute": "|G|"}[settings["sigma"]]
    return direction, compared, spread, settings["border"], settings["normalise"] == "author-2020"


def check(relevance: Any, n: float, settings: dict[str, str], table: Any = None) -> int:
    """Hold select_motion against the slow version, clip by clip, and return how many voxels were kept."""
    motion_relevance, mask = select_motion(relevance, n, **settings)
    assert motion_relevance.shape == relevance.shape
    assert motion_relevance.dtype == relevance.dtype
    values = relevance.detach().double().numpy() if isinstance(relevance, torch.Tensor) else relevance
    kept = motion_relevance.detach().double().numpy() if isinstance(relevance, torch.Tensor) else motion_relevance
    mask = np.asarray(mask)
    assert mask.shape == (values.shape[0], *values.shape[-3:])
    for index, clip in enumerate(values):
        slow = slow_selection(clip, n, table or as_table(settings))
        assert_mask_close(mask[index], slow.mask, slow.margin, band=4 * slow.rounding)
    assert np.array_equal(kept, np.where(mask[:, None] if values.ndim == 5 else mask, values, 0))
    return int(mask.sum())


def random_map(seed: int = 0, shape: tuple[int, ...] = (2, 3, 7, 6, 8)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sprite_map(seed: int = 0, negative: bool = True) -> torch.Tensor:
    """What a real map looks like: [1,3,16,20,24], coarse static blocks, exact zeros, and a blob that moves."""
    rng = np.random.default_rng(seed)
    scene = np.kron(np.round(rng.exponential(1, (3, 5, 6)), 1), np.ones((4, 4)))
    scene[:, :8] = 0
    if negative:
        scene[:, :, :8] *= -1
    clip = np.repeat(scene[:, None], 16, axis=1)
    for step in range(16):
        clip[:, step, 6:11, step : step + 5] += 3
    return torch.from_numpy(clip[None].astype(np.float32) * 1e-4)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings.values()))
def test_every_setting_matches_the_slow_version(settings: dict[str, str]) -> None:
    kept = [check(random_map(seed), n, settings) for seed in (0, 1) for n in (0.0, 1.0, 2.0)]
    assert all(kept), "a case that keeps nothing tests nothing"
    for clip in (sprite_map(), sprite_map(negative=False), sprite_map().sum(1), -random_map(3).abs()):
        check(clip, 2.0, settings)
        check(clip, 4.0, settings)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings.values()))
def test_gradient_matches_the_slow_version(settings: dict[str, str]) -> None:
    halves = random_map(3).half(), random_map(4).bfloat16()  # their channels are summed in float32 too
    for relevance in (random_map(), random_map(1)[:, 0], random_map(2).double(), sprite_map(), *halves):
        gradient = reference.motion_gradient(relevance, settings["border"], settings["normalise"])
        assert gradient.dtype == (torch.float64 if relevance.dtype == torch.float64 else torch.float32)
        for got, clip in zip(gradient.numpy(), relevance.double().numpy(), strict=True):
            slow = slow_selection(clip, 1.0, as_table(settings))
            np.testing.assert_allclose(got, slow.gradient, rtol=0, atol=2 * slow.rounding)


def test_threshold_is_n_times_the_unbiased_standard_deviation() -> None:
    gradient = random_map(4, (3, 5, 6, 7)) * 1e-3 + 5.0  # a mean far from zero: one pass would lose σ
    for n, sigma in itertools.product((1.0, 4.0), ("signed", "absolute")):
        values = gradient.double().numpy()
        expected = n * (np.abs(values) if sigma == "absolute" else values).std(axis=(1, 2, 3), ddof=1)
        threshold = reference.sigma_threshold(gradient, n, sigma)
        assert threshold.shape == (3, 1, 1, 1)
        np.testing.assert_allclose(threshold.flatten().numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_what_the_table_says(name: str) -> None:
    for clip in (random_map(5), random_map(6).abs(), sprite_map(), sprite_map(negative=False)):
        for n in (1.0, 2.0, 4.0):
            check(clip, n, PRESETS[name], TABLE[name])


@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 2, 5, 6),  # two time steps
        (1, 3, 2, 1, 1),
        (2, 3, 9, 1, 1),  # frames of one pixel
        (2, 1, 6, 1, 7),
        (1, 2, 6, 7, 1),
        (2, 6, 7, 5),  # channels summed
        (1, 3, 3, 4, 5),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_shapes_and_types(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for settings in (*PRESETS.values(), {**PRESETS["default"], "normalise": "author-2020"}):
        for n in (0.5, 1.5):
            check(random_map(7, shape).to(dtype), n, settings)


def test_float64_is_not_computed_in_float32() -> None:
    relevance = 1.0 + 1e-12 * random_map(8).double()
    slow = [slow_selection(clip, 2.0, TABLE["default"]) for clip in relevance.numpy()]
    _, mask = select_motion(relevance, 2.0)
    for got, clip in zip(mask, slow, strict=True):
        assert_mask_close(got, clip.mask, clip.margin, band=1e-14)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings.values()))
def test_maps_without_change(settings: dict[str, str]) -> None:
    zero = torch.zeros(2, 3, 8, 4, 5)
    assert not select_motion(zero, 0.0, **settings)[1].any()
    for value in (1.0, 0.1, -0.3):
        constant = torch.full((1, 3, 8, 4, 5), value)
        frozen = random_map(9)[:, :, :1].repeat(1, 1, 8, 1, 1) * value
        if settings["border"] == "replicate":
            assert not select_motion(constant, 0.0, **settings)[1].any()
            assert not select_motion(frozen, 0.0, **settings)[1].any()
        check(constant, 1.0, settings)


def test_zero_border_makes_an_edge_of_the_first_and_last_frame() -> None:
    constant = torch.full((1, 1, 16, 6, 6), 0.7)
    kept = {
        sign: select_motion(constant, 2.0, sign=sign, border="zero")[1].flatten(2).any(-1).nonzero()[:, 1].tolist()
        for sign in ("absolute", "rising", "falling")
    }
    assert kept == {"absolute": [0, 15], "rising": [0], "falling": [15]}


def test_the_comparison_is_strict() -> None:
    # Two impulses: G is +16, −16, +16, −16 in 17 steps, so σ = √(4·16² ÷ 16) = 8 and 2σ is exactly |G|.
    relevance = torch.zeros(1, 1, 17, 1, 1)
    relevance[:, :, (4, 12)] = 1.0
    gradient = reference.motion_gradient(relevance)
    assert gradient.flatten().nonzero().flatten().tolist() == [3, 5, 11, 13]
    assert reference.sigma_threshold(gradient, 2.0).item() == 16.0
    assert not select_motion(relevance, 2.0)[1].any()
    assert select_motion(relevance, np.nextafter(np.float32(2.0), np.float32(0)))[1].sum() == 4


def test_each_clip_has_its_own_sigma() -> None:
    batch = torch.cat([random_map(10, (1, 3, 8, 16, 16)), 1e-3 * random_map(11, (1, 3, 8, 16, 16))])
    for settings in PRESETS.values():
        together = select_motion(batch, 2.0, **settings)
        for index in range(2):
            alone = select_motion(batch[index : index + 1], 2.0, **settings)
            assert alone[1].any()
            for one, many in zip(alone, together, strict=True):
                assert torch.equal(one[0], many[index])


@pytest.mark.parametrize("name", PRESETS)
def test_the_selection_does_not_depend_on_the_scale(name: str) -> None:
    relevance = random_map(12)
    mask = select_motion(relevance, 2.0, **PRESETS[name])[1]
    for exponent in (-100, -60, -7, 1, 30, 100):  # squares of 2^±100 do not exist in float32
        assert torch.equal(select_motion(relevance * 2.0**exponent, 2.0, **PRESETS[name])[1], mask)
    for factor in (0.1, 3.0, 1e-9, 777.0):
        scaled = select_motion(relevance * factor, 2.0, **PRESETS[name])[1]
        for got, expected, clip in zip(scaled, mask, relevance, strict=True):
            slow = slow_selection(clip.numpy(), 2.0, TABLE[name])
            assert_mask_close(got, expected, slow.margin, band=8 * slow.rounding)


def test_how_the_settings_relate() -> None:
    relevance = random_map(13, (2, 3, 10, 12, 12))
    for sigma, border in itertools.product(("signed", "absolute"), ("replicate", "zero")):
        masks = {
            sign: select_motion(relevance, 1.5, sign=sign, sigma=sigma, border=border)[1]
            for sign in ("absolute", "rising", "falling")
        }
        assert torch.equal(masks["rising"] | masks["falling"], masks["absolute"])
        assert not (masks["rising"] & masks["falling"]).any()
        backwards = select_motion(relevance.flip(2), 1.5, sign="falling", sigma=sigma, border=border)[1]
        assert torch.equal(backwards.flip(1), masks["rising"])
    # |E[G]| ≤ E|G|, so σ of |G| is never the greater one: n·σ of it keeps at least as much.
    signed, absolute = (select_motion(relevance, 2.0, sigma=sigma)[1] for sigma in ("signed", "absolute"))
    assert (signed & ~absolute).sum() == 0
    assert absolute.sum() > signed.sum()
    # The authors' normalisation is an affine map per clip: only a border of zeros can tell, and only a shift of it.
    settings = {"sign": "falling", "n_sigma": 2.0}
    for clip, border, same in (
        (relevance, "replicate", True),
        (relevance.abs(), "zero", True),
        (relevance, "zero", False),
    ):
        masks_of = [
            select_motion(clip, border=border, normalise=normalise, **settings)[1]  # type: ignore[arg-type]
            for normalise in ("none", "author-2020")
        ]
        assert torch.equal(*masks_of) == same


def test_memory_layouts() -> None:
    contiguous = random_map(14, (2, 3, 6, 7, 8))
    expected = select_motion(contiguous, 1.5)
    strided = torch.empty(2, 3, 12, 14, 8)[:, :, ::2, 1::2].copy_(contiguous)
    permuted = contiguous.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)
    for layout in (strided, permuted, contiguous.to(memory_format=torch.channels_last_3d)):
        assert not layout.is_contiguous()
        for got, want in zip(select_motion(layout, 1.5), expected, strict=True):
            assert torch.equal(got, want)


def test_numpy_in_numpy_out() -> None:
    tensor = random_map(15)
    expected = [value.numpy() for value in select_motion(tensor, 1.5)]
    read_only = tensor.numpy().copy()
    read_only.flags.writeable = False
    arrays = {
        "plain": tensor.numpy(),
        "read only": read_only,
        "foreign byte order": tensor.numpy().astype(">f4"),
        "negative strides": tensor.numpy()[..., ::-1].copy()[..., ::-1],
        "Fortran order": np.asfortranarray(tensor.numpy()),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for array in arrays.values():
            before = array.copy()
            motion_relevance, mask = select_motion(array, 1.5)
            assert isinstance(motion_relevance, np.ndarray)
            assert mask.dtype == np.bool_
            assert motion_relevance.dtype == np.float32
            assert np.array_equal(motion_relevance, expected[0])
            assert np.array_equal(mask, expected[1])
            assert np.array_equal(array, before)
            assert not np.shares_memory(motion_relevance, array)
    for dtype in (np.float16, np.float64):
        check(tensor.numpy().astype(dtype), 1.5, PRESETS["default"])


def test_the_gradient_passes_where_the_mask_is_set() -> None:
    relevance = random_map(16).requires_grad_()
    motion_relevance, mask = select_motion(relevance, 1.5)
    assert not mask.requires_grad
    motion_relevance.sum().backward()
    assert relevance.grad is not None
    assert torch.equal(relevance.grad, mask[:, None].expand_as(relevance).float())
    with torch.inference_mode():
        assert torch.equal(select_motion(relevance, 1.5)[1], mask)


@pytest.mark.parametrize("name", PRESETS)
def test_it_can_be_traced(name: str) -> None:
    def select(relevance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return reference.select_motion(relevance, 2.0, **PRESETS[name])

    traced_on, fresh = random_map(17), -sprite_map()[..., :8].repeat(2, 1, 1, 1, 1)[:, :, :7, :6].abs()
    graph = make_fx(select)(traced_on)
    compiled = torch.compile(select, backend="aot_eager", fullgraph=True)
    checked = torch.compile(
        lambda relevance: select_motion(relevance, 2.0, **PRESETS[name]), backend="aot_eager", fullgraph=True
    )
    for relevance in (traced_on, fresh):
        expected = select_motion(relevance, 2.0, **PRESETS[name])
        for run in (select, graph, compiled, checked):
            assert all(torch.equal(got, want) for got, want in zip(run(relevance), expected, strict=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings.values()))
def test_one_bad_voxel_anywhere_is_found(settings: dict[str, str], bad: float) -> None:
    for shape in ((2, 3, 2, 1, 1), (2, 3, 3, 2, 3)):
        for index in np.ndindex(*shape[1:]):
            relevance = random_map(18, shape)
            relevance[(1, *index)] = bad
            with pytest.raises(ValueError, match="relevance of clip 1 holds NaN, infinity"):
                select_motion(relevance, 1.0, **settings)
            # Where the check would have to wait for the device, such a clip keeps nothing, and harms no other.
            mask = reference.select_motion(relevance, 0.5, **settings)[1]
            assert not mask[1].any()
            assert torch.equal(mask[:1], select_motion(relevance[:1], 0.5, **settings)[1])


@pytest.mark.cuda
def test_cuda_agrees_with_the_slow_version() -> None:
    for name, relevance in itertools.product(PRESETS, (random_map(19), sprite_map(), random_map(20).bfloat16())):
        motion_relevance, mask = select_motion(relevance.cuda(), 2.0, **PRESETS[name])
        assert motion_relevance.dtype == relevance.dtype
        for got, clip in zip(mask, relevance.double().numpy(), strict=True):
            slow = slow_selection(clip, 2.0, TABLE[name])
            assert_mask_close(got, slow.mask, slow.margin, band=4 * slow.rounding)


def test_the_comparison_of_masks_can_fail() -> None:
    margin = np.linspace(-1, 1, 1000)
    mask = margin > 0
    assert assert_mask_close(torch.from_numpy(mask), mask, margin, band=0.0) == 0
    near = mask.copy()
    near[500] = False  # margin 0.001
    assert assert_mask_close(near, mask, margin, band=0.002) == 1
    with pytest.raises(AssertionError, match="1 of 1000 voxels differ outside the band"):
        assert_mask_close(near, mask, margin, band=0.0005)
    near[501] = False
    with pytest.raises(AssertionError, match="2 of 1000 voxels differ inside the band"):
        assert_mask_close(near, mask, margin, band=0.01)
    with pytest.raises(AssertionError, match="outside the band"):
        assert_mask_close(near, mask, np.full(1000, np.nan), band=1.0)
