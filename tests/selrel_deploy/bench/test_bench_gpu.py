"""The benchmark of a network on a GPU, rehearsed on the processor; what nvidia-smi tells; on a GPU the real one."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import selrel_zennit as sr
from networks import FewLayers, few_layers
from selrel_deploy.bench import gpu, timing
from selrel_deploy.bench.gpu import GpuChoice, bench_gpu
from selrel_deploy.bench.gpu_table import gpu_table
from selrel_deploy.bench.gpu_watch import GpuWatch
from selrel_deploy.bench.report import Pacing
from selrel_deploy.bench.windows import synthetic_windows

REHEARSAL = GpuChoice(runners=("eager",), precisions=("fp32", "fp32+bf16"), device="cpu", batches=(1, 3))


def bench(choice: GpuChoice, rounds: int) -> dict[str, Any]:
    """Warm up for four rounds, whatever the machine does."""
    model = few_layers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "warm_up", lambda calls, rest, **_: timing.warm_up(calls, rest=rest, least=0.0, most=0.0))
        return bench_gpu(model, synthetic_windows(FewLayers.spec), choice, Pacing(rounds=rounds))


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return bench(REHEARSAL, 5)


def check(result: dict[str, Any], rounds: int) -> None:
    """Hold the figures of every row against each other."""
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for row in result["rows"]:
        stages = row["stages"]
        assert set(stages) == {"forward", "explanation", "read", "end_to_end"}
        for stage in stages.values():
            assert len(stage["samples"]) == rounds
            assert 0 < stage["min"] <= stage["p50"] <= stage["p99"] <= stage["max"]
        assert row["ratios"]["over_forward"] == stages["explanation"]["p50"] / stages["forward"]["p50"]
        fill = row["batch"] * FewLayers.spec.frames / 30
        streams = row["streams"]
        assert streams["clips_read_elsewhere"] == int(fill / stages["end_to_end"]["p99"])
        assert 0 < streams["clips_read_here"] <= streams["clips_read_elsewhere"]
        assert row["budget"]["held"] == (row["budget"]["share"] <= 1)
        least = {"fp32": ("exact",)}.get(row["precision"], ("exact", "faithful", "approximate"))
        assert row["parity"]["grade"] in least, row["parity"]
        assert len(row["parity"]["certificate"]["cases"]) >= 6
    text = gpu_table(result)
    for row in result["rows"]:
        assert any(f"  {row['batch']}  " in line and row["precision"] in line for line in text.splitlines())


def test_every_batch_and_precision_has_figures(result: dict[str, Any]) -> None:
    check(result, 5)
    found = [(row["batch"], row["precision"], row["runner"], row["cuda_graph"]) for row in result["rows"]]
    assert found == [(batch, precision, "eager", False) for batch in (1, 3) for precision in ("fp32", "fp32+bf16")]
    assert [one["batch"] for one in result["copies"]] == [1, 3]
    assert result["copies"][1]["bytes_to_device"] == 3 * 4 * math.prod(FewLayers.spec.shape)
    assert result["gpu"] is None
    assert "a rehearsal, no GPU" in gpu_table(result)
    assert "in ms, on the device by the processor's clock." in gpu_table(result)


@pytest.mark.slow
def test_a_wrong_explanation_is_not_called_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last clip of a batch is what is compared: one that holds the maps of another class must fail."""
    plain = gpu.variants_of

    def wrong(*arguments: Any) -> Any:
        found = plain(*arguments)
        for variant in found:
            explain = variant.explain
            variant.explain = lambda clips, target, explain=explain: explain(clips[:, :, ::-1].copy(), target)
        return found

    monkeypatch.setattr(gpu, "variants_of", wrong)
    result = bench(GpuChoice(runners=("eager",), precisions=("fp32",), device="cpu", batches=(2,)), 2)
    assert result["rows"][0]["parity"]["grade"] == "failed"


@pytest.mark.slow
def test_what_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = gpu.variants_of

    def full(graph: Any, *arguments: Any) -> Any:
        if graph.clip_shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(graph, *arguments)

    monkeypatch.setattr(gpu, "variants_of", full)
    choice = GpuChoice(runners=("eager",), precisions=("fp32",), device="cpu", batches=(1, 2))
    result = bench(choice, 2)
    assert len(result["rows"]) == 1
    assert "left out: dtd fp32, batch 2: the device has too little memory for it" in gpu_table(result)
    with pytest.raises(sr.InputError, match="too little memory"):
        bench(GpuChoice(runners=("eager",), precisions=("fp32",), device="cpu", batches=(2,)), 2)


def test_names() -> None:
    assert GpuChoice(precisions=("tf32", "fp16")).pairs() == [
        (runner, precision) for precision in ("tf32", "fp16") for runner in ("eager", "inductor")
    ]
    every = GpuChoice(precisions=("all",)).pairs()
    assert ("inductor", "fp32+int8") not in every
    assert ("eager", "fp32+int8") in every
    for choice, message in (
        (GpuChoice(precisions=("tf33",)), "no precision named .tf33. \\(did you mean .tf32."),
        (GpuChoice(precisions=("tf32",), device="cpu"), "tf32 exists on CUDA alone"),
        (GpuChoice(runners=("onnxruntime",)), "no runner of a model on a GPU named 'onnxruntime'"),
    ):
        with pytest.raises(sr.InputError, match=message):
            choice.pairs()


def test_clocks_are_sampled_while_something_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert GpuWatch("GPU-1").stop() is None
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'echo "$@" > "$0.arguments"\n'
        'echo "1200, 2619, 310.5, 41"\n'
        'echo "1980, 2619, [N/A], 43"\n'
        'printf "1980, 26"\n'
        "while :; do /bin/sleep 0.05; done\n"
    )
    program.chmod(0o755)
    watch = GpuWatch("GPU-1")
    for _ in range(100):
        time.sleep(0.02)
        if (tmp_path / "nvidia-smi.arguments").exists():
            break
    time.sleep(0.2)
    assert watch.stop() == {
        "samples": 2,
        "sm_mhz": {"min": 1200, "median": 1590, "max": 1980},
        "memory_mhz": {"min": 2619, "median": 2619, "max": 2619},
        "watts": {"min": 310.5, "median": 310.5, "max": 310.5},
        "celsius": {"min": 41, "median": 42, "max": 43},
    }
    assert "--id=GPU-1 " in (tmp_path / "nvidia-smi.arguments").read_text()
    program.write_text("#!/bin/sh\necho 'Field is not a valid field to query.'\n")
    watch = GpuWatch("0")
    time.sleep(0.2)
    assert watch.stop() is None


@pytest.mark.cuda
def test_on_a_gpu() -> None:
    result = bench(GpuChoice(precisions=("fp32", "tf32", "fp32+bf16"), batches=(1, 2)), 20)
    assert not result["skipped"]
    check({**result, "rows": [row for row in result["rows"] if row["precision"] != "tf32"]}, 20)
    kinds = {(row["runner"], row["cuda_graph"]) for row in result["rows"]}
    assert kinds == {("eager", False), ("inductor", False), ("inductor", True)}
    assert all(row["clock"] == "CUDA events" and row["memory"]["peak"] > 0 for row in result["rows"])
    assert all(set(one) >= {"pageable", "pinned"} for one in result["copies"])
