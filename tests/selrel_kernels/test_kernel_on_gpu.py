"""The kernel on a GPU: what test_kernel_on_host.py holds, and what only a device shows."""

from __future__ import annotations

import pytest
import torch

from kernel_cases import Case, random_case
from selrel_kernels import ops, select_motion, torch_operator
from selrel_kernels.launcher import Selector
from selrel_kernels.plan import KernelUnavailable

pytestmark = pytest.mark.cuda

MOST_ON_THE_EDGE = 10


@pytest.fixture(scope="module")
def selector() -> Selector:
    found = torch_operator.kernel_for(torch.zeros(1, device="cuda"))
    assert found is not None, "the kernel cannot run on this GPU: the warning says why"
    return found


def launched(selector: Selector, case: Case, variant: str = "two launches") -> tuple[torch.Tensor, torch.Tensor]:
    strided = case.relevance
    on_gpu = torch.empty_strided(strided.shape, strided.stride(), dtype=strided.dtype, device="cuda").copy_(strided)
    limits = None if case.thresholds is None else torch.tensor(case.thresholds, device="cuda")
    return torch_operator.launch(selector, on_gpu, case.n_sigma, limits, case.flags, variant)


def with_copied_channels(case: Case) -> Case:
    """A copy cannot be made into a map whose channels are the same memory."""
    if 0 in case.relevance.stride():
        case.relevance = case.relevance.contiguous()
    return case


@pytest.mark.parametrize("variant", ["two launches", "cluster"])
def test_random_selections(selector: Selector, variant: str) -> None:
    differing, run = 0, 0
    for seed in range(320):
        case = with_copied_channels(random_case(seed, largest=(5, 3, 16, 60, 90)))
        try:
            result = launched(selector, case, variant)
        except KernelUnavailable:
            continue
        differing += case.check(*result, what=f"case {seed}")
        run += 1
    if variant == "two launches":
        assert run == 320
    elif torch.cuda.get_device_capability() >= (9, 0):
        assert run > 100
    assert differing <= MOST_ON_THE_EDGE * 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_clips_as_they_come(selector: Selector, dtype: torch.dtype) -> None:
    for clips in (1, 7, 64):
        relevance = torch.randn(clips, 3, 16, 112, 112, generator=torch.Generator().manual_seed(clips)).to(dtype)
        assert Case(relevance, 2.0).check(*launched(selector, Case(relevance, 2.0))) <= 10 * clips


def test_select_motion_launches_the_kernel(selector: Selector) -> None:
    relevance = torch.randn(2, 3, 16, 30, 40, device="cuda").requires_grad_()
    motion, mask = select_motion(relevance, 1.5)
    direct = torch_operator.launch(selector, relevance.detach(), 1.5, None, 0)
    assert torch.equal(motion, direct[0])
    assert torch.equal(mask, direct[1])
    motion.sum().backward()
    assert relevance.grad is not None
    assert torch.equal(relevance.grad, mask[:, None].expand_as(relevance).float())
    torch.library.opcheck(torch_operator.select_motion, (relevance, 1.5))


def test_results_repeat_bit_for_bit(selector: Selector) -> None:
    relevance = torch.randn(64, 3, 16, 112, 112, device="cuda")
    first = torch_operator.launch(selector, relevance, 2.0, None, 0)
    for _ in range(20):
        again = torch_operator.launch(selector, relevance, 2.0, None, 0)
        assert torch.equal(again[0], first[0])
        assert torch.equal(again[1], first[1])


def test_graphs_and_compiled_functions() -> None:
    static = torch.randn(4, 3, 16, 56, 56, device="cuda")
    thresholds = [1e-6] * 16

    def both(relevance: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (*select_motion(relevance, 2.0), *select_motion(relevance, thresholds=thresholds))

    both(static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both(static)
    compiled = torch.compile(both, mode="reduce-overhead", fullgraph=True)
    for seed in range(3):
        fresh = torch.randn(static.shape, generator=torch.Generator().manual_seed(seed)).cuda()
        static.copy_(fresh)
        graph.replay()
        for got, in_graph, want in zip(compiled(fresh), captured, both(fresh), strict=True):
            assert torch.equal(got, want)
            assert torch.equal(in_graph, want)


def test_another_stream() -> None:
    relevance = torch.randn(32, 3, 16, 112, 112, device="cuda")
    expected = select_motion(relevance, 2.0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = relevance.clone()
        result = select_motion(late, 2.0)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(result[1], expected[1])


def test_more_elements_than_32_bits_count() -> None:
    clip = torch.randn(1, 3, 16, 112, 112, generator=torch.Generator().manual_seed(0)).half()
    clips = 2**31 // clip.numel() + 2
    if torch.cuda.mem_get_info()[0] < 2.5 * clips * clip.numel() * 2:
        relevance = clip.cuda().expand(2, *clip.shape[1:])  # as far as this GPU's memory goes
    else:
        relevance = clip.cuda().expand(clips, *clip.shape[1:])
    motion, mask = select_motion(relevance, 2.0)
    one = select_motion(clip.cuda(), 2.0)
    for index in (0, len(relevance) // 2, -1):
        assert torch.equal(mask[index], one[1][0])
        assert torch.equal(motion[index], one[0][0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_clip_that_is_not_finite_keeps_nothing(bad: float) -> None:
    relevance = torch.randn(3, 3, 16, 30, 40, device="cuda")
    expected = select_motion(relevance, 1.0)
    relevance[1, 0, 5, 6, 7] = bad
    motion, mask = select_motion(relevance, 1.0)
    assert not mask[1].any()
    assert not motion[1].any()
    for index in (0, 2):
        assert torch.equal(mask[index], expected[1][index])


def test_what_is_refused() -> None:
    relevance = torch.randn(2, 3, 4, 5, 6, device="cuda")
    with pytest.raises(TypeError, match=r"got torch\.int32"):
        select_motion(relevance.int())
    with pytest.raises(ValueError, match="at least 2 time steps"):
        select_motion(relevance[:, :, :1])
    with pytest.raises(ValueError, match="thresholds must be on the relevance's device cuda:0, got cpu"):
        torch_operator.select_motion(relevance, 4.0, torch.zeros(4))
    free, _ = torch.cuda.mem_get_info()
    huge = relevance[:1, :1].expand(free // 200 + 1, 3, 4, 5, 6)
    with pytest.raises(torch.OutOfMemoryError):
        select_motion(huge)
    assert select_motion(relevance)[1].shape == (2, 4, 5, 6), "after an error, the next selection works"
    assert ops.select_motion(relevance.double())[0].dtype == torch.float64
