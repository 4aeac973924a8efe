"""The CUDA source, compiled for this machine's processor under AddressSanitizer and UBSan, against the definition."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kernel_cases import Case, build_on_host, random_case, random_plan, run_on_host
from selrel_kernels import cubins, plan

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++ with AddressSanitizer")

RANDOM_CASES = 320
# Voxels that lie on their threshold, so that rounding decides: 1 of 600,000 was seen.
MOST_ON_THE_EDGE = 10


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_on_host(tmp_path_factory.mktemp("host"))


def launched(case: Case, seed: int) -> tuple[Case, plan.Plan]:
    shape, _ = plan.as_five(case.relevance.shape, case.relevance.stride())
    return case, random_plan(np.random.default_rng(seed), shape, case.flags)


def planned(case: Case, multiprocessors: int = 2, shared: int = 99 * 1024) -> tuple[Case, plan.Plan]:
    shape, _ = plan.as_five(case.relevance.shape, case.relevance.stride())
    return case, plan.plan_launches(shape, plan.Limits(multiprocessors, shared, 80))


def check_all(program: Path, cases: list[tuple[Case, plan.Plan]], folder: Path) -> int:
    results = run_on_host(program, cases, folder)
    return sum(
        case.check(*result, what=f"case {index}, {launch}")
        for index, ((case, launch), result) in enumerate(zip(cases, results, strict=True))
    )


@pytest.mark.slow
def test_random_selections(program: Path, tmp_path: Path) -> None:
    cases = [launched(random_case(seed), seed) for seed in range(RANDOM_CASES)]
    assert sum(launch.in_cluster for _, launch in cases) > 20
    assert {case.relevance.dtype for case, _ in cases} == {torch.float32, torch.float16, torch.bfloat16}
    assert len({tuple(case.settings.values()) for case, _ in cases}) == 24
    assert any(not case.relevance.is_contiguous() for case, _ in cases)
    assert check_all(program, cases, tmp_path) <= MOST_ON_THE_EDGE


def test_odd_shapes_and_values(program: Path, tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(1)
    maps = [torch.randn(shape, generator=rng) for shape in ((1, 1, 2, 1, 1), (5, 1, 2, 1, 9), (2, 7, 33, 9, 1))]
    maps += [torch.zeros(2, 3, 4, 5, 6), torch.full((1, 2, 16, 5, 5), 0.1), -torch.full((1, 2, 16, 5, 5), 0.1)]
    maps += [torch.randn(1, 1, 3, 70, 70, generator=rng), torch.randn(300, 1, 2, 1, 1, generator=rng)]
    maps += [torch.randn(1, 3, 4, 5, 66, generator=rng) * scale for scale in (1e-38, 1e34)]
    maps += [torch.full((1, 1, 16, 6, 6), 0.7).half(), torch.full((1, 1, 2, 3, 3), 2.0**-24).half()]
    settings = [
        {"sign": "absolute", "sigma": "signed", "border": "replicate", "normalise": "none"},
        {"sign": "falling", "sigma": "signed", "border": "zero", "normalise": "author-2020"},
        {"sign": "absolute", "sigma": "absolute", "border": "zero", "normalise": "none"},
    ]
    cases = [launched(Case(relevance, 1.5, chosen), 5 + i) for i, relevance in enumerate(maps) for chosen in settings]
    thresholds = [(0.0,) * relevance.shape[2] for relevance in maps]
    cases += [planned(Case(one, thresholds=values)) for one, values in zip(maps, thresholds, strict=True)]
    assert check_all(program, cases, tmp_path) <= MOST_ON_THE_EDGE


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_a_clip_that_is_not_finite_keeps_nothing(program: Path, tmp_path: Path, bad: float) -> None:
    """Nor one whose sums are too large; the other clips of the batch are selected as ever."""
    cases = []
    for seed in range(8):
        case = random_case(seed + 900, largest=(1, 3, 7, 12, 20), dtype=torch.float32)
        relevance = case.relevance.contiguous().repeat(3, *[1] * (case.relevance.ndim - 1))
        place = tuple(size // 2 for size in relevance.shape[1:])
        relevance[(1, *place)] = bad
        if bad == 3e38:
            relevance[(1, *place[:-3], place[-3] - 1)] = -bad
        for normalise in ("none", "author-2020"):
            settings = {**case.settings, "normalise": normalise}
            cases.append(launched(Case(relevance, case.n_sigma, settings, case.thresholds), seed))
    for motion, mask in run_on_host(program, cases, tmp_path):
        assert not mask[1].any()
        assert not motion[1].any()
        assert torch.equal(mask[0], mask[2])


def test_the_comparison_is_strict(program: Path, tmp_path: Path) -> None:
    """Two impulses: G is ±16 in 4 of 17 steps, so σ is 8, and 2σ is exactly |G|."""
    relevance = torch.zeros(1, 1, 17, 1, 1)
    relevance[:, :, (4, 12)] = 1.0
    below = float(np.nextafter(np.float32(2.0), np.float32(0)))
    launches = [planned(Case(relevance, n), shared=shared) for n in (2.0, below) for shared in (99 * 1024, 13 * 1024)]
    kept = [int(mask.sum()) for _, mask in run_on_host(program, launches, tmp_path)]
    assert kept == [0, 0, 4, 4]


def test_results_do_not_depend_on_the_order_of_threads(program: Path, tmp_path: Path) -> None:
    cases = [launched(random_case(seed), seed) for seed in range(500, 512) for _ in range(4)]
    results = run_on_host(program, cases, tmp_path, orders=[0, 1, 2, 3] * 12)
    for first in range(0, len(cases), 4):
        for motion, mask in results[first + 1 : first + 4]:
            assert torch.equal(mask, results[first][1])
            assert torch.equal(motion, results[first][0])


def test_more_elements_than_32_bits_count(program: Path, tmp_path: Path) -> None:
    """The last clip of a batch of 2^33 elements; of the others, nothing is touched, so no memory is there for them."""
    case = random_case(3, largest=(1, 3, 7, 12, 20), dtype=torch.float16)
    case.relevance = torch.randn(1, 3, 4, 9, 11, generator=torch.Generator().manual_seed(2)).half()
    clips = 2**33 // case.relevance.numel()
    for relevance, stride in ((case.relevance, case.relevance.numel()), (case.relevance[:, 0], 2**20)):
        count = clips if relevance.ndim == 5 else 5000
        shape, _ = plan.as_five(relevance.shape, relevance.stride())
        launch = plan.plan_launches((count, *shape[1:]), plan.Limits(132, 227 * 1024, 90))
        one = Case(relevance, 1.0)
        header = {"clips": count, "clip_stride": stride, "only_clip": count - 1}
        (result,) = run_on_host(program, [(one, launch)], tmp_path, **header)
        assert result[1].any()
        assert one.check(*result) == 0


PLANTED = {
    "a wrong index": ("tile.steps - (has_last ? 1 : 0), -1", "tile.steps - (has_last ? 1 : 0) + 1, -1"),
    "a missing barrier": (
        "load(p, clip, tile, decision.shift, box);\n            __syncthreads();",
        "load(p, clip, tile, decision.shift, box);",
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_caught(tmp_path: Path, fault: str) -> None:
    text = cubins.source()
    right, wrong = PLANTED[fault]
    assert text.count(right) == 1
    source = tmp_path / "planted.cu"
    source.write_text(text.replace(right, wrong), encoding="utf-8")
    program = build_on_host(tmp_path, source)
    with pytest.raises(AssertionError):
        check_all(program, [launched(random_case(seed), seed) for seed in range(12)], tmp_path)
