"""How many synthetic clips of 16×112×112 one core makes a second: training must not wait for them.

    python benchmarks/generator.py [--clips 400]

They are timed in four parts, so that the spread shows; to results/generator.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import cv2
from machine import machine, write_json

from selrel_zennit.synthetic import GENERATOR_VERSION, SyntheticSpec, make_clip

RESULTS = Path(__file__).parent / "results" / "generator.json"
SEED = 9000
PARTS = 4


def rates(spec: SyntheticSpec, clips: int) -> list[float]:
    """Return clips per second, part by part."""
    found = []
    make_clip(spec, SEED, 0)
    for part in range(PARTS):
        first, count = 1 + part * clips // PARTS, clips // PARTS
        start = time.perf_counter()
        for index in range(first, first + count):
            make_clip(spec, SEED, index)
        found.append(count / (time.perf_counter() - start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=400, help="clips for each setting (default 400)")
    clips = parser.parse_args().clips
    # One core: OpenCV would take the others too.
    cv2.setNumThreads(1)
    settings = {"default": SyntheticSpec(), "camera shake": SyntheticSpec(shake=2)}
    result: dict[str, Any] = {
        "command": f"python benchmarks/generator.py --clips {clips}",
        "machine": machine(),
        "generator_version": GENERATOR_VERSION,
        "clips_per_second": {name: rates(spec, clips) for name, spec in settings.items()},
    }
    write_json(RESULTS, result)
    for name, found in result["clips_per_second"].items():
        print(f"{name}: {min(found):.0f} to {max(found):.0f} clips a second")


if __name__ == "__main__":
    main()
