"""What the check of the same network costs: the first explanation of an attributor, and those after it.

    python benchmarks/first_explanation.py [--networks NAME…] [--method dtd] [--rounds 3]

Processor time of the process, one thread, so that other work on the machine matters little. ``first`` is a new
attributor's first call, in which the network is copied, canonized, covered and, where anything was rewritten, run once
more for its bare logits: ``check`` is that run and the comparison. ``later`` is a call after it, in the same block.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from machine import machine, write_json

import selrel_zennit as sr
from selrel_zennit.attribution import base

RESULTS = Path(__file__).parent / "results" / "first_explanation.json"
NETWORKS = ("demo", "c3d", "r3d_18", "r2plus1d_18", "x3d_s")


def measured(name: str, method: str, rounds: int) -> dict[str, Any]:
    """Return processor seconds of first calls, of the check within them, and of later calls."""
    model = sr.load_model(name) if name == "demo" else sr.load_model(name, weights="random")
    clip = torch.randn(1, *model.spec.shape, generator=torch.Generator().manual_seed(0)) * 0.5
    classes = model(clip).shape[1]
    target = sr.one_hot(0, classes)
    samples: dict[str, list[float]] = {"first": [], "check": [], "later": []}
    checks: list[float] = []
    compare = base.check_same

    def timed(*arguments: Any) -> None:
        since = time.process_time()
        compare(*arguments)
        checks.append(time.process_time() - since)

    base.check_same = timed
    try:
        for number in range(rounds + 1):
            checks.clear()
            since = time.process_time()
            with sr.build_method(method, model) as attributor:
                attributor(clip, target)
                first = time.process_time() - since
                check = sum(checks)
                since = time.process_time()
                attributor(clip, target)
                later = time.process_time() - since
            assert len(checks) <= 1
            if number:
                for key, value in (("first", first), ("check", check), ("later", later)):
                    samples[key].append(value)
    finally:
        base.check_same = compare
    medians = {key: statistics.median(values) for key, values in samples.items()}
    return {
        "check_over_first": medians["check"] / medians["first"],
        "first_over_later": medians["first"] / medians["later"],
        "medians_cpu_s": medians,
        "samples_cpu_s": samples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--method", default="dtd")
    parser.add_argument("--rounds", type=int, default=3, help="attributors of each, after one that is not kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name in arguments.networks:
        rows[name] = measured(name, arguments.method, arguments.rounds)
        shares = rows[name]["check_over_first"], rows[name]["first_over_later"]
        print(f"{name:<14} check {shares[0]:.1%} of the first explanation, which takes {shares[1]:.2f} of a later one")
    write_json(RESULTS, {"machine": machine(), "method": arguments.method, "rows": rows})


if __name__ == "__main__":
    main()
