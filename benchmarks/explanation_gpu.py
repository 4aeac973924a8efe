"""What a selective explanation costs on a GPU: DTD of C3D of full width, precision by precision, batch by batch.

    python benchmarks/explanation_gpu.py [--batches 1,8,32] [--precisions fp32,tf32,fp32+bf16,bf16,fp32+fp16,fp16]
                                         [--seconds 0.5] [--device cuda] [--out FILE]

One process. For every batch and precision the network's forward pass and the explanation with its selection, operation
by operation and compiled by inductor, the latter with and without a CUDA graph: times on the device by CUDA events.
Beside them: copies of a clip to the device and of the outputs back, pageable and pinned; end to end through the runner,
from a NumPy clip to NumPy maps; the number of streams at 30 frames per second that the 99th percentile sustains; the
error of relevance against float32 on the processor, as a share of the distance to the map of the clip frozen to one
frame. ``tf32`` is float32 whose products may be rounded to TF32; ``fp32`` never rounds them. Clocks, power and
temperature are sampled at every row.

Where artifacts run on the GPU (ONNX Runtime's CUDA provider, TensorRT), ``selrel bench --artifact`` times them.
Without a GPU: one line, exit code 2. ``--device cpu --small`` rehearses the script on the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kernel_gpu import clocks
from machine import machine
from precisions import distance, outputs_alone
from torch import nn

import selrel_zennit as sr
from selrel_deploy import compile_explanation, open_runner
from selrel_deploy.runners.inductor import compile_frozen
from selrel_deploy.runners.torch_cuda import float32_products, on_device, record
from selrel_zennit.synthetic import SyntheticSpec, make_clip

RESULTS = Path(__file__).parent / "results" / "explanation_gpu.json"
PRECISIONS = ("fp32", "tf32", "fp32+bf16", "bf16", "fp32+fp16", "fp16")
# p50 at batch 1, in milliseconds, and the ratio to the forward pass of the same precision.
TARGETS_MS = {"bf16": 0.9, "fp16": 0.9, "tf32": 1.8, "fp32": 6.0}
MOST_OVER_FORWARD = 3.3
FILL = 16 / 30

Call = Callable[[], Any]


class OnDevice:
    """A graph on a device, called on inputs that lie there."""

    def __init__(self, module: Any, inputs: list[torch.Tensor], compiled: bool, cuda_graph: bool, tf32: bool) -> None:
        self.inputs, self.tf32 = inputs, tf32
        self.module: Any = on_device(module, inputs[0].device)
        if compiled:
            with float32_products(tf32):
                self.module = compile_frozen(self.module, *inputs)
        self.call: Call = record(self._once) if cuda_graph else self._once

    def _once(self) -> Any:
        with torch.no_grad(), float32_products(self.tf32):
            self.outputs = self.module(*self.inputs)
        return self.outputs


def samples(call: Call, device: torch.device, least: float, on_host: bool = False) -> list[float]:
    """Return seconds of a call, by CUDA events or (``on_host``) from start to end as the caller sees it."""

    def once() -> float:
        if on_host or device.type != "cuda":
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end)

    first = statistics.median(once() for _ in range(5))
    return [once() for _ in range(min(max(int(least / max(first, 1e-6)), 5), 2000))]


def figures(taken: list[float]) -> dict[str, Any]:
    p50, p90, p95, p99 = (float(np.quantile(taken, q)) for q in (0.5, 0.9, 0.95, 0.99))
    return {"p50_ms": 1e3 * p50, "p90_ms": 1e3 * p90, "p95_ms": 1e3 * p95, "p99_ms": 1e3 * p99, "samples_s": taken}


def copies(clip: np.ndarray, outputs: int, device: torch.device, least: float) -> dict[str, Any]:
    """Time what goes to the device and what comes back, from pageable and from pinned memory."""
    rows = {}
    for kind in ("pageable", "pinned"):
        if kind == "pinned" and device.type != "cuda":
            continue
        host, back = torch.from_numpy(clip), torch.empty(outputs, dtype=torch.uint8)
        if kind == "pinned":
            host, back = host.pin_memory(), back.pin_memory()
        there, result = torch.empty_like(host, device=device), torch.empty(outputs, dtype=torch.uint8, device=device)
        rows[f"to the device, {kind}"] = figures(
            samples(lambda a=there, b=host: a.copy_(b, non_blocking=True), device, least)
        )
        rows[f"back, {kind}"] = figures(samples(lambda a=back, b=result: a.copy_(b, non_blocking=True), device, least))
    return rows


def clips_of(model: Any, count: int) -> np.ndarray:
    """Return clips [N,3,T,H,W] in model units: synthetic ones, in which something moves."""
    shape = model.spec
    spec = SyntheticSpec(frames=shape.frames, height=max(shape.crop, 48), width=max(shape.crop, 48))
    return np.concatenate([shape.array(make_clip(spec, 5, index).frames) for index in range(count)])


def parity(run: Any, right: Any, clips: np.ndarray) -> dict[str, Any]:
    """Hold a runner of batch 1 against the float32 graph on the processor, on three clips."""
    errors, shares, same = [], [], []
    for clip in clips[:3]:
        expected = right(torch.from_numpy(clip[None]), torch.tensor([-1]))
        still = np.repeat(clip[None, :, :1], clip.shape[1], 2)
        frozen = right(torch.from_numpy(still), expected[1])[2]
        got = run(clip[None], int(expected[1]))
        error = distance(torch.from_numpy(got.relevance), expected[2])
        errors.append(error)
        shares.append(error / distance(frozen, expected[2]))
        same.append(bool(np.argmax(got.logits) == int(expected[0].argmax())))
    return {"norm_error": max(errors), "of_frozen": max(shares), "same_class": all(same)}


def measure(model: Any, batch: int, precision: str, device: torch.device, least: float, right: Any) -> dict[str, Any]:
    """Return the rows of one batch and precision."""
    tf32, cuda = precision == "tf32", device.type == "cuda"
    name = "fp32" if tf32 else precision
    attributor = sr.build_method("dtd", model)
    clips = clips_of(model, max(batch, 3))
    graph = compile_explanation(attributor, torch.zeros(batch, *model.spec.shape), precision=name)
    inputs = [torch.from_numpy(clips[:batch]).to(device), torch.full((batch,), -1, device=device)]
    rows: dict[str, Any] = {}
    for runner, compiled, cuda_graph in (
        ("eager", False, False),
        ("inductor", True, False),
        ("inductor, CUDA graph", True, True),
    ):
        if (cuda_graph and not cuda) or (not cuda and compiled and "fp16" in precision):
            continue
        times = {}
        for what, module in (("forward", outputs_alone(graph, "logits")), ("explanation", graph.module)):
            call = OnDevice(module, inputs, compiled, cuda_graph, tf32).call
            times[what] = figures(samples(call, device, least))
        rows[runner] = {**times, "over_forward": times["explanation"]["p50_ms"] / times["forward"]["p50_ms"]}
        rows[runner]["clocks"] = clocks() if cuda else None
    outputs = sum(value.nbytes for value in OnDevice(graph.module, inputs, False, False, tf32)._once())
    options: dict[str, Any] = {"device": str(device), **({"tf32": True} if tf32 else {})} if cuda else {}
    name_of = "inductor" if "inductor" in rows else "eager"
    with open_runner(graph, name_of, **options) as run:
        whole = figures(samples(lambda: run(clips[:batch], None), device, least, on_host=True))
        found = parity(run, right, clips) if batch == 1 else None
    return {
        "batch": batch,
        "precision": precision,
        "rows": rows,
        "copies": copies(clips[:batch], outputs, device, least / 5),
        "end_to_end": {"runner": name_of, **whole},
        "streams_at_30_fps": int(batch * FILL / (1e-3 * whole["p99_ms"])),
        "parity": found,
    }


def small_network() -> nn.Module:
    """A few layers of C3D, for the rehearsal."""
    torch.manual_seed(0)
    layers = [nn.Conv3d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(8, 8, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    model.spec = sr.ClipSpec(frames=4, short_side=16, crop=16)  # type: ignore[assignment]
    return model.requires_grad_(False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,8,32", help="numbers with commas between (default 1,8,32)")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="names with commas between (default all)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of calls for each figure (default 0.5)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a rehearsal")
    parser.add_argument("--small", action="store_true", help="a few layers in place of C3D")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: benchmarks/results/explanation_gpu.json")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: this benchmark needs a CUDA device, and torch sees none", file=sys.stderr)
        return 2
    model: Any = small_network() if arguments.small else sr.load_model("c3d", weights="random", num_classes=101)
    right = compile_explanation(sr.build_method("dtd", model), torch.zeros(1, *model.spec.shape))
    result: dict[str, Any] = {
        "what": "selective DTD on a device" + (", a rehearsal" if device.type == "cpu" else ""),
        "command": f"python benchmarks/explanation_gpu.py --seconds {arguments.seconds}",
        "machine": machine(),
        "model": "a few layers" if arguments.small else "c3d, random weights, 101 classes",
        "targets": {"p50_ms": TARGETS_MS, "over_forward": MOST_OVER_FORWARD},
        "sizes": [],
    }
    for batch in map(int, arguments.batches.split(",")):
        for precision in arguments.precisions.split(","):
            try:
                row = measure(model, batch, precision, device, arguments.seconds, right)
            except torch.OutOfMemoryError:
                print(f"batch {batch}, {precision}: left out, the device has too little memory for it")
                continue
            result["sizes"].append(row)
            for runner, times in row["rows"].items():
                print(
                    f"batch {batch:2d}  {precision:<10} {runner:<21} {times['explanation']['p50_ms']:8.3f} ms  "
                    f"{times['over_forward']:5.2f} × forward",
                    flush=True,
                )
            print(
                f"          end to end p99 {row['end_to_end']['p99_ms']:.3f} ms, {row['streams_at_30_fps']} streams, "
                f"parity {row['parity']}"
            )
    partial = arguments.out.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
