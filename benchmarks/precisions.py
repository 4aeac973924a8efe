"""What each precision costs and keeps: DTD of C3D of full width, in torch, against Zennit and against a forward pass.

    SELREL_DATA=FOLDER python benchmarks/precisions.py [--rounds 7] [--threads 2] [--precisions fp32 bf16 …]

One process. First accuracy: relevance on three real clips against the float32 graph, as a share of the distance to the
map of the same clip frozen to one frame, and the agreement of the masks at 1, 2 and 4σ. Then time: one call of each in
turn, so that whatever else the machine does falls on all of them. A forward pass is one of the same runner and
precision: the graph with its logits alone. Ratios are of medians; the file keeps every sample. Peak memory is that of a
process of its own, above what holds the model.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, write_json
from real_clips import CLIPS, clip_of

import selrel_zennit as sr
from selrel_deploy import compile_explanation
from selrel_deploy.bench.plain import outputs_alone
from selrel_deploy.precisions import PRECISIONS
from selrel_deploy.runners.memory import keep_freed_memory
from selrel_deploy.runners.torch.compiled import compile_frozen

RESULTS = Path(__file__).parent / "results" / "precisions.json"
# Processors without fp16 arithmetic compute it in float32: its accuracy counts, and its time says nothing.
TIMED = ("fp32", "fp32+bf16", "fp32+int8", "bf16", "bf16+int8")
EAGER = ("fp32", "bf16+int8")
SIGMAS = (1.0, 2.0, 4.0)
TOP = torch.tensor([-1])


def distance(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the norm-relative distance."""
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def accuracy(got: tuple[torch.Tensor, ...], right: tuple[torch.Tensor, ...], frozen: float) -> dict[str, Any]:
    """Compare the outputs for one clip with those in float32."""
    error = distance(got[2], right[2])
    masks = [[sr.MotionSelection(n_sigma=n).mask(value[2]) for value in (got, right)] for n in SIGMAS]
    return {
        "error": error,
        "of_frozen": error / frozen,
        "mask_iou": {f"{n:g}σ": float((a & b).sum() / (a | b).sum()) for n, (a, b) in zip(SIGMAS, masks, strict=True)},
        "same_class": bool(got[1].equal(right[1])),
        "sum": float(got[2].sum()),
    }


def peak_memory(what: str) -> float:
    """Return by how many MiB a process grows at most while it explains one clip for the first time."""
    done = subprocess.run([sys.executable, __file__, "--memory", what], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def measure_memory(what: str) -> None:
    """Print what ``peak_memory`` returns, for Zennit or a precision in eager mode."""
    model = sr.load_model("c3d", weights="random", num_classes=101)
    clip, attributor = clip_of(model, CLIPS[0]), sr.build_method("dtd", model)
    if what != "zennit":
        module = compile_explanation(attributor, torch.zeros_like(clip), precision=what).form("eager")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # compiling needs more than explaining
    page = os.sysconf("SC_PAGE_SIZE")
    before = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page / 2**20
    if what == "zennit":
        attributor(clip, sr.one_hot(0, 101))
    else:
        with torch.no_grad():
            module(clip, TOP)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**10
    print(peak - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="calls of each (default 7), after two that are not kept")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        measure_memory(arguments.memory)
        return

    keep_freed_memory()
    model = sr.load_model("c3d", weights="random", num_classes=101)
    attributor = sr.build_method("dtd", model)
    clips = [clip_of(model, name) for name in CLIPS]
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    timed: dict[str, Callable[[], Any]] = {
        "zennit": lambda: attributor(clips[0], sr.one_hot(0, 101)),
        "eager forward": lambda: model(clips[0]),
    }
    accurate: dict[str, Any] = {}
    graphs: dict[str, Any] = {}
    references: list[tuple[torch.Tensor, ...]] = []
    frozen: list[float] = []
    with torch.no_grad():
        for precision in ["fp32", *(name for name in arguments.precisions if name != "fp32")]:
            graph = compile_explanation(attributor, torch.zeros_like(clips[0]), precision=precision)
            graphs[precision] = {"passes": [report._asdict() for report in graph.passes]}
            graphs[precision]["constants_over_weights"] = graph.passes[-1].constant_bytes / weights
            eager = graph.form("eager")
            runs: dict[str, Callable[..., Any]] = {"eager": eager}
            if precision in EAGER:
                timed[f"eager {precision}"] = lambda eager=eager: eager(clips[0], TOP)
            if precision in TIMED:
                runs["inductor"] = compile_frozen(graph.form("inductor"), clips[0], TOP)
                forward = compile_frozen(outputs_alone(graph.form("eager"), "logits"), clips[0], TOP)
                timed[f"inductor forward {precision}"] = lambda forward=forward: forward(clips[0], TOP)
                timed[f"inductor {precision}"] = lambda run=runs["inductor"]: run(clips[0], TOP)
            if not references:
                references = [eager(clip, TOP) for clip in clips]
                still = [clip[:, :, :1].expand_as(clip).contiguous() for clip in clips]
                frozen = [
                    distance(eager(clip, right[1])[2], right[2]) for clip, right in zip(still, references, strict=True)
                ]
                alone = outputs_alone(graph.form("inductor"), "logits", "explained_target", "relevance")
                relevance_alone = compile_frozen(alone, clips[0], TOP)
                timed["inductor fp32 without selection"] = lambda run=relevance_alone: run(clips[0], TOP)
            accurate[precision] = {
                name: [
                    accuracy(run(clip, TOP), right, still)
                    for clip, right, still in zip(clips, references, frozen, strict=True)
                ]
                for name, run in runs.items()
            }
            del graph
            _report(precision, accurate[precision])

    # In inference as it is used: Zennit needs gradients, the rest runs without.
    load_before = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for round_ in range(arguments.rounds + 2):
        for name, call in timed.items():
            with torch.set_grad_enabled(name == "zennit"):
                start = time.perf_counter()
                call()
                taken = time.perf_counter() - start
            if round_ > 1:
                seconds[name].append(taken)
    medians = {name: statistics.median(samples) for name, samples in seconds.items()}
    rows = {name: _row(name, medians, seconds[name]) for name in timed}
    result = {
        "machine": machine(),
        "load_average": {"before": load_before, "after": os.getloadavg()[0]},
        "model": "c3d, random weights, 101 classes, dtd",
        "clips": list(CLIPS),
        "frozen_distance": frozen,
        "accuracy": accurate,
        "graphs": graphs,
        "rows": rows,
        "selection_share": 1 - medians["inductor fp32 without selection"] / medians["inductor fp32"],
        "peak_memory_mib": {what: peak_memory(what) for what in ("zennit", "fp32")},
    }
    write_json(RESULTS, result, ensure_ascii=False)
    for name, row in rows.items():
        ratio = f"{row['over_forward']:5.2f} × forward" if "over_forward" in row else ""
        print(f"{name:<32} {row['median_s']:7.3f} s  {row['over_zennit']:6.3f} × Zennit  {ratio}")
    print(f"selection {result['selection_share']:.2%}, peak memory {result['peak_memory_mib']}")


def _row(name: str, medians: dict[str, float], samples: list[float]) -> dict[str, Any]:
    row: dict[str, Any] = {"median_s": medians[name], "over_zennit": medians[name] / medians["zennit"]}
    runner, *words = name.split()
    forward = "eager forward" if runner == "eager" else f"{runner} forward {words[0] if words else ''}"
    if forward in medians and forward != name:
        row["over_forward"] = medians[name] / medians[forward]
    return {**row, "samples_s": samples}


def _report(precision: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    for name, rows in runs.items():
        worst = max(row["of_frozen"] for row in rows)
        least = float(np.min([list(row["mask_iou"].values()) for row in rows]))
        print(f"{precision:<10} {name:<9} {worst:8.3%} of the frozen distance, mask IoU {least:.4f}", flush=True)


if __name__ == "__main__":
    main()
