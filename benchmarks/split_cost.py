"""What a split artifact costs beside a plain forward pass and beside the single graph: C3D of full width, ONNX Runtime.

    python benchmarks/split_cost.py [--method dtd] [--rounds 9] [--threads 2]

The clip is real where SELREL_DATA names the folder of clips, else noise. One process runs in turn: the network alone
as torch.onnx exports it, forward.onnx, explain.onnx on what forward.onnx handed over, and the single graph. Ratios
are medians of the ratios of each round; the file keeps every sample.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from machine import PACKAGES, machine, write_json
from methods_cost import clip_for

import selrel_zennit as sr
from selrel_deploy import compile_explanation, read_artifact
from selrel_deploy.artifact import export
from selrel_deploy.artifact.onnx_file import OPSET

RESULTS = Path(__file__).parent / "results" / "split_cost.json"
_CPU = ["CPUExecutionProvider"]
LIMITS = {"forward.onnx / plain forward": 1.15, "(forward.onnx + explain.onnx) / single graph": 1.1}


def bound(path: Path, threads: int, feeds: dict[str, Any]) -> tuple[Callable[[], None], Any]:
    """Return a call that runs a file on values that stay where they are, and the binding with its outputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=_CPU)
    binding = session.io_binding()
    for entry in session.get_inputs():
        binding.bind_ortvalue_input(entry.name, feeds[entry.name])
    for entry in session.get_outputs():
        binding.bind_output(entry.name, "cpu")

    def run() -> None:
        session.run_with_iobinding(binding)

    return run, (session, binding)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="dtd", help="a compilable method (default dtd)")
    parser.add_argument("--rounds", type=int, default=9, help="calls of each (default 9), after two that are not kept")
    parser.add_argument("--threads", type=int, default=2, help="threads of ONNX Runtime (default 2)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    model = sr.load_model("c3d", weights="random", num_classes=101)
    source, clip = clip_for(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graph = compile_explanation(sr.build_method(arguments.method, model), clip)
        artifact = read_artifact(export(graph, folder / "split.onnx", clips=clip, split=True))
        export(graph, folder / "whole.onnx", clips=clip)
        del graph
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            plain = folder / "plain.onnx"
            torch.onnx.export(
                model, (clip,), plain, dynamo=True, opset_version=OPSET, input_names=["clip"], verbose=False
            )
        feeds = {
            "clip": onnxruntime.OrtValue.ortvalue_from_numpy(clip.numpy()),
            "target": onnxruntime.OrtValue.ortvalue_from_numpy(torch.tensor([-1]).numpy()),
        }
        calls: dict[str, Callable[[], None]] = {}
        calls["plain forward"], _ = bound(plain, arguments.threads, feeds)
        calls["forward.onnx"], (session, binding) = bound(artifact.parts["forward"], arguments.threads, feeds)
        calls["forward.onnx"]()
        names = [entry.name for entry in session.get_outputs()]
        handed = dict(zip(names, binding.get_outputs(), strict=True))
        calls["explain.onnx"], _ = bound(artifact.parts["explain"], arguments.threads, {**feeds, **handed})
        calls["single graph"], _ = bound(folder / "whole.onnx", arguments.threads, feeds)
        load_before = os.getloadavg()[0]
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for round_ in range(arguments.rounds + 2):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                taken = time.perf_counter() - start
                if round_ >= 2:
                    seconds[name].append(taken)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.suffix != ".json"}
    ratios = {
        "forward.onnx / plain forward": [
            a / b for a, b in zip(seconds["forward.onnx"], seconds["plain forward"], strict=True)
        ],
        "(forward.onnx + explain.onnx) / single graph": [
            (a + b) / c
            for a, b, c in zip(seconds["forward.onnx"], seconds["explain.onnx"], seconds["single graph"], strict=True)
        ],
    }
    medians = {name: statistics.median(samples) for name, samples in ratios.items()}
    result = {
        "command": f"python benchmarks/split_cost.py --method {arguments.method} --rounds {arguments.rounds} "
        f"--threads {arguments.threads}",
        "machine": machine(PACKAGES),
        "load_average": {"before": load_before, "after": os.getloadavg()[0]},
        "model": "c3d, random weights, 101 classes",
        "method": arguments.method,
        "clip": source,
        "runtime": "onnxruntime, CPUExecutionProvider",
        "activations": {
            "count": len(artifact.activations),
            "bytes": sum(value.numpy().nbytes for key, value in handed.items() if key in artifact.activations),
        },
        "file_bytes": sizes,
        "rows": {
            name: {"median_s": statistics.median(samples), "samples_s": samples} for name, samples in seconds.items()
        },
        "ratios": {
            name: {"median": medians[name], "limit": LIMITS[name], "samples": samples}
            for name, samples in ratios.items()
        },
    }
    write_json(arguments.out, result)

    print(f"load average before {load_before:.1f}, after {os.getloadavg()[0]:.1f}")
    for name, samples in seconds.items():
        print(f"{name:<14} {statistics.median(samples):7.3f} s")
    for name, ratio in medians.items():
        print(f"{name}: {ratio:.3f} (limit {LIMITS[name]})")


if __name__ == "__main__":
    main()
