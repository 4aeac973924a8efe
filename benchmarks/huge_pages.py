"""What huge pages change: C3D's forward pass and its DTD in every runner, in small pages of memory and in huge ones.

    python benchmarks/huge_pages.py [--runners eager,onnxruntime] [--turns 2] [--rounds 8] [--threads 2]

The clip is real where SELREL_DATA names the folder of clips, else noise. How the C library asks for memory is settled
when a process starts: each turn gives every runner a process of each kind, in which the forward pass and the
explanation alternate. Ratios are of medians over all turns; the file keeps every sample. Only where Linux gives huge
pages to those who ask (madvise) do the two differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import HUGE, machine, with_pages, write_json
from methods_cost import clip_for

import selrel_zennit as sr
from selrel_deploy import compile_explanation, open_runner
from selrel_deploy.artifact import export
from selrel_deploy.bench.conditions import huge_pages
from selrel_deploy.bench.plain import run_alone

RESULTS = Path(__file__).parent / "results" / "huge_pages.json"
RUNNERS = ("eager", "inductor", "onnxruntime", "openvino")
# Calls before those that count: runtimes fetch their memory in the first.
WARM_UP = 2


def measured(runner: str, rounds: int, threads: int) -> dict[str, Any]:
    """Return the clip explained, and the seconds of forward passes and of explanations in turn."""
    torch.set_num_threads(threads)
    model = sr.load_model("c3d", weights="random", num_classes=101)
    name, clip = clip_for(model)
    value = clip.numpy()
    source: Any = compile_explanation(sr.build_method("dtd", model), clip, selection=sr.MotionSelection())
    with tempfile.TemporaryDirectory() as folder:
        options = {}
        if runner in ("onnxruntime", "openvino"):
            source = export(source, Path(folder) / "dtd.onnx", clips=clip)
            options["threads"] = threads
        forward = run_alone(model, value, runner, threads, Path(folder))
        with open_runner(source, runner, **options) as run:
            del source
            calls = {"forward": lambda: forward(value), "explanation": lambda: run(value, target=None)}
            seconds: dict[str, list[float]] = {pass_: [] for pass_ in calls}
            for round_ in range(WARM_UP + rounds):
                for pass_, call in calls.items():
                    start = time.perf_counter()
                    call()
                    if round_ >= WARM_UP:
                        seconds[pass_].append(time.perf_counter() - start)
    return {"clip": name, "seconds": seconds}


def said(environment: dict[str, str], *arguments: str) -> Any:
    """Return what this script prints, as JSON, in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    found = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(found.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runners", default=",".join(RUNNERS), help="names with commas between (default: all)")
    parser.add_argument("--turns", type=int, default=2, help="processes of each kind for each runner (default 2)")
    parser.add_argument("--rounds", type=int, default=8, help="calls in each process (default 8), after two not kept")
    parser.add_argument("--threads", type=int, default=2, help="threads of every runner (default 2)")
    parser.add_argument("--pages", action="store_true", help="print, as JSON, whether this process has huge pages")
    parser.add_argument("--measure", metavar="RUNNER", help="measure one runner in this process, and print JSON")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file to write")
    arguments = parser.parse_args()
    if arguments.pages:
        print(json.dumps(huge_pages()))
        return
    if arguments.measure:
        print(json.dumps(measured(arguments.measure, arguments.rounds, arguments.threads)))
        return

    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    kinds = {"small": with_pages(environment, huge=False), "huge": with_pages(environment, huge=True)}
    settings = ("--rounds", str(arguments.rounds), "--threads", str(arguments.threads))
    if {kind: said(kinds[kind], "--pages") for kind in kinds} != {"small": False, "huge": True}:
        raise SystemExit("the system does not give small pages to one process and huge ones to another")
    rows: dict[str, Any] = {}
    for turn in range(arguments.turns):
        for runner in arguments.runners.split(","):
            for kind in reversed(kinds) if turn % 2 else kinds:
                found = said(kinds[kind], "--measure", runner, *settings)
                samples = rows.setdefault(runner, {}).setdefault(kind, {"forward": [], "explanation": []})
                for pass_, seconds in found["seconds"].items():
                    samples[pass_] += seconds
    for runner, row in rows.items():
        p50 = {kind: {name: statistics.median(row[kind][name]) for name in row[kind]} for kind in kinds}
        row["ratios"] = {
            **{f"{name}: huge / small": p50["huge"][name] / p50["small"][name] for name in p50["huge"]},
            **{f"{kind}: explanation / forward": p50[kind]["explanation"] / p50[kind]["forward"] for kind in kinds},
        }
        print(runner, *(f"{name} {ratio:.3f}" for name, ratio in row["ratios"].items()), sep="  ")
    result = {
        "command": f"python benchmarks/huge_pages.py --runners {arguments.runners} --turns {arguments.turns} "
        f"--rounds {arguments.rounds} --threads {arguments.threads}",
        "machine": machine(),
        "model": "c3d, random weights, 101 classes",
        "method": "dtd",
        "clip": found["clip"],
        "asked": f"GLIBC_TUNABLES={HUGE}",
        "rows": rows,
    }
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
