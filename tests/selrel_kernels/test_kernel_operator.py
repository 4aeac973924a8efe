"""torch.ops.selrel.select_motion: the definition as one operator, for torch.compile, autograd and CUDA graphs."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from kernel_cases import Case, random_case
from selrel_kernels import launcher, ops, reference, torch_operator
from selrel_kernels.plan import KernelUnavailable

SCHEMA = (
    "selrel::select_motion(Tensor relevance, float n_sigma=4., Tensor? thresholds=None, "
    'str sign="absolute", str sigma="signed", str border="replicate", str normalise="none") -> (Tensor, Tensor)'
)


def operate(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    limits = None if case.thresholds is None else torch.tensor(case.thresholds)
    motion, mask = torch.ops.selrel.select_motion(case.relevance, case.n_sigma, limits, **case.settings)
    return motion, mask


def test_schema() -> None:
    assert str(torch.ops.selrel.select_motion.default._schema) == SCHEMA


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own check asks
@pytest.mark.parametrize("seed", range(6))
def test_opcheck(seed: int) -> None:
    case = random_case(seed, largest=(2, 3, 5, 4, 6))
    relevance = case.relevance.detach().clone().requires_grad_()
    limits = None if case.thresholds is None else torch.tensor(case.thresholds)
    torch.library.opcheck(torch_operator.select_motion, (relevance, case.n_sigma, limits), case.settings)


def test_on_the_cpu_it_is_the_definition() -> None:
    for seed in range(40):
        case = random_case(seed)
        motion, mask = operate(case)
        expected = reference.select_motion(case.relevance, case.n_sigma, thresholds=case.thresholds, **case.settings)
        assert torch.equal(motion, expected[0])
        assert torch.equal(mask, expected[1])
        assert motion.is_contiguous()
        assert mask.is_contiguous()


def test_it_compiles_as_one_node_and_has_a_gradient() -> None:
    def scaled(relevance: torch.Tensor) -> torch.Tensor:
        motion: torch.Tensor = torch.ops.selrel.select_motion(2 * relevance, 1.0)[0]
        return motion.sum()

    relevance = torch.randn(2, 3, 5, 6, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.compile(scaled, backend="aot_eager", fullgraph=True)(relevance).backward()
    assert relevance.grad is not None
    mask = ops.select_motion(relevance.detach() * 2, 1.0)[1]
    assert torch.equal(relevance.grad, 2.0 * mask[:, None].expand_as(relevance))
    exported = torch.export.export(Selection(), (relevance.detach(),))
    targets = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert torch.ops.selrel.select_motion.default in targets


class Selection(torch.nn.Module):
    def forward(self, relevance: torch.Tensor) -> Any:
        return torch.ops.selrel.select_motion(relevance, 2.0, None, "rising")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(1, 3, 4, 5, 5, dtype=torch.int64),), TypeError, "got torch.int64"),
        ((torch.zeros(1, 3, 1, 5, 5),), ValueError, "at least 2 time steps"),
        ((torch.zeros(4, 5, 5),), ValueError, r"\[B,C,T,H,W\]"),
        ((torch.zeros(1, 3, 4, 5, 5), -1.0), ValueError, "n_sigma must be finite and 0 or more"),
        ((torch.zeros(1, 3, 4, 5, 5), 1.0, None, "up"), ValueError, "sign must be one of"),
    ],
)
def test_what_it_refuses(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        torch.ops.selrel.select_motion(*arguments)


class Recorder:
    """In the place of a device's library: notes what would be launched."""

    limits = launcher.Limits(132, 227 * 1024, 90)

    def __init__(self) -> None:
        self.launched: list[str] = []

    def load(self, names: Any) -> dict[str, Any]:
        return {name: name for name in names}

    def launch(self, kernel: Any, *_: Any) -> None:
        self.launched.append(kernel)


def test_the_kernel_is_for_cuda_tensors() -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match="the kernel selects CUDA tensors, got one on cpu"):
        torch_operator.launch(launcher.Selector(recorder), torch.zeros(1, 3, 4, 5, 5), 4.0, None, 0)
    assert not recorder.launched


def test_where_the_kernel_cannot_run_a_warning_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(ordinal: int) -> None:
        raise KernelUnavailable("no cuda.core: install it")

    monkeypatch.setattr(launcher, "cuda_core_selector", unavailable)
    torch_operator._selector.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"torch operations on this GPU, not as a kernel: no cuda\.core: install"):
            assert torch_operator._selector(0) is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch_operator._selector(0) is None
    finally:
        torch_operator._selector.cache_clear()


def test_float64_is_not_for_the_kernel() -> None:
    assert torch_operator.kernel_for(torch.zeros(1, 2, 2, 2, dtype=torch.float64)) is None


def test_calibrated_thresholds_are_put_on_a_device_once() -> None:
    device = torch.device("cpu")
    with torch.inference_mode():
        first = ops._limits_on((0.5, 0.25), device)
    assert first.tolist() == [0.5, 0.25]
    assert not first.is_inference()
    assert ops._limits_on((0.5, 0.25), device) is first
