"""What DTD of full-size C3D costs in every runner and precision, beside Zennit and a forward pass of the same runner.

    SELREL_DATA=CLIPS python benchmarks/deploy_latency.py [--precisions fp32,bf16] [--rounds 32] [--threads 2]

The clips are those of the folder that SELREL_DATA names. Each precision is one process of `selrel bench`, in which all
runners, Zennit and the forward passes take turns: ratios hold within it. All of them at once would not fit into
memory. The processes ask for huge pages of memory (huge_pages.py says what they change). The file keeps every sample;
a run without --precisions makes all of it anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import machine, with_pages, write_json

from selrel_deploy.precisions import PRECISIONS

RESULTS = Path(__file__).parent / "results" / "deploy_latency.json"
MODEL = ("--model", "c3d", "--weights", "random", "--num-classes", "101")


def bench(precision: str, clips: str, rounds: int, threads: int) -> dict[str, Any]:
    """Return what `selrel bench` measures for one precision, without the details of its certificates."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bench.json"
        settings = ("--precisions", precision, "--rounds", str(rounds), "--threads", str(threads), "--clips", clips)
        command = [sys.executable, "-m", "selrel_zennit", "bench", *MODEL, "--methods", "dtd", *settings]
        environment = {**with_pages(os.environ, huge=True), "OMP_NUM_THREADS": str(threads)}
        subprocess.run([*command, "--json", str(out)], check=True, env=environment)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    for row in found["rows"]:
        row["parity"].pop("certificate", None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="with commas between (default: all)")
    parser.add_argument("--rounds", type=int, default=32, help="calls of each row (default 32)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every runner (default 2)")
    arguments = parser.parse_args()
    precisions = arguments.precisions.split(",")
    if unknown := [name for name in precisions if name not in PRECISIONS]:
        parser.error(f"no precision {unknown[0]!r}; there are {', '.join(PRECISIONS)}")
    clips = os.environ.get("SELREL_DATA")
    if not clips:
        parser.error("set SELREL_DATA to a folder of real videos")

    before: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    kept = before.get("precisions", {}) if set(precisions) != set(PRECISIONS) else {}
    for precision in precisions:
        kept[precision] = bench(precision, clips, arguments.rounds, arguments.threads)
        result = {
            "command": f"python benchmarks/deploy_latency.py --rounds {arguments.rounds} --threads {arguments.threads}",
            "machine": machine(),
            "model": "c3d, random weights, 101 classes",
            "precisions": {name: kept[name] for name in PRECISIONS if name in kept},
        }
        # After each: hours of measuring are not lost to the last one.
        write_json(RESULTS, result)


if __name__ == "__main__":
    main()
