"""What the motion part of a margin costs, with one reference: compiled, in eager and ONNX Runtime, beside Zennit.

    python benchmarks/motion_cost.py [--rounds 8] [--threads 2]

C3D at full size with random weights. All rows take turns in one process; ratios are to the forward pass of the same
runner. Five convolution passes are the floor: forward on clip and reference, one with |w|, two going backward.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from machine import machine, write_json

import selrel_zennit as sr
from selrel_deploy.bench.network import Choice, bench_network
from selrel_deploy.bench.report import Pacing
from selrel_deploy.bench.windows import synthetic_windows
from selrel_zennit.attribution.methods.motion import MotionLRP, motion_lrp

RESULTS = Path(__file__).parent / "results" / "motion_cost.json"


@sr.register_method(
    "motion_lrp_middle",
    summary="motion_lrp with the middle frame as its only reference",
    citation="docs/explanation/motion.md",
    passes=5.0,
    compilable=True,
    rules=True,
)
def motion_lrp_middle(model: torch.nn.Module) -> MotionLRP:
    return motion_lrp(model, reference="middle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="calls of each row (default 8)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every runner (default 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = sr.load_model("c3d", weights="random", num_classes=101)
    found: dict[str, Any] = bench_network(
        model,
        synthetic_windows(model.spec),  # type: ignore[arg-type]
        Choice(("dtd", "motion_lrp_middle"), ("eager", "onnxruntime"), ("fp32",)),
        Pacing(rounds=arguments.rounds),
        say=lambda text: print(text, flush=True),
    )
    for row in found["rows"]:
        row["parity"].pop("certificate", None)
    command = f"python benchmarks/motion_cost.py --rounds {arguments.rounds} --threads {arguments.threads}"
    about = {"command": command, "machine": machine(), "model": "c3d, random weights, 101 classes"}
    write_json(RESULTS, {**found, **about})


if __name__ == "__main__":
    main()
