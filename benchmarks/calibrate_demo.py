"""Calibrate the demo model with every method, selrel_zennit/calibration/shipped/demo/METHOD.json, and a table of rates.

    python benchmarks/calibrate_demo.py [--methods NAME ...] [--share 1.0] [--threads N]

Thresholds are made from frozen synthetic clips and verified on as many others. What a rate needs is many clips, since
it differs from clip to clip; a method of many passes gets fewer, and its rates are recorded as they come out. A method
that cannot be calibrated is named in the table with the reason. Methods that were not asked for keep their rows.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from machine import machine, write_json
from torch import nn
from tqdm import tqdm

import selrel_zennit as sr
from selrel_zennit.calibration.stills import synthetic_stills
from selrel_zennit.calibration.thresholds import ALPHAS

CALIBRATIONS = Path(sr.__file__).parent / "calibration" / "shipped" / "demo"
RESULTS = Path(__file__).parent / "results" / "calibration.json"

# Forward passes per method, shared out over its clips, and the fewest and most clips to make thresholds from.
PASSES, FEWEST, MOST = 4000, 20, 400
# The rate of Grad-CAM differs five times as much from clip to clip as that of the others. The methods of 50 passes and
# more get the fewest clips that a rate can be told from.
MORE = {
    "gradcam": 5000,
    "lrp_epsilon_plus": 500,
    "smoothgrad": 120,
    "smoothgrad_squared": 120,
    "integrated_gradients": 120,
    "occlusion": 120,
}


def clips_for(method: str, share: float) -> int:
    """Return the number of clips to make thresholds from; as many verify them."""
    clips = MORE.get(method, max(min(PASSES / sr.METHODS[method].passes / 2, MOST), FEWEST))
    return max(round(clips * share), 2)


def calibrated(model: nn.Module, method: str, clips: int) -> dict[str, Any]:
    """Calibrate, write the file, and return the row of the table."""

    def progress(work: Iterable[Any]) -> Iterable[Any]:
        return tqdm(work, desc=method, unit="batch", disable=None)  # type: ignore[no-any-return]

    since = time.perf_counter()
    try:
        stills = synthetic_stills(model.spec, clips, clips)  # type: ignore[arg-type]
        calibration = sr.calibrate(model, method, stills, alphas=ALPHAS, progress=progress)
    except sr.InputError as error:
        return {"method": method, "impossible": str(error)}
    calibration.write(CALIBRATIONS / f"{method}.json")
    return {
        "method": method,
        "clips": clips,
        "held_out": clips,
        "seconds": round(time.perf_counter() - since, 1),
        "levels": [
            {
                "alpha": level.alpha,
                "held_out_rate": level.held_out_rate,
                "held_out_error": level.held_out_error,
                "within_20_percent": level.holds,
            }
            for level in calibration.levels
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(sr.METHODS), choices=list(sr.METHODS), metavar="NAME")
    parser.add_argument("--share", type=float, default=1.0, help="share of the clips to use, for a trial run")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (default: all cores)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = sr.load_model("demo")
    provenance: dict[str, Any] = model.provenance  # type: ignore[assignment]

    # The rows of other weights are of no use any more.
    earlier = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    kept = earlier.get("rows", []) if earlier.get("weights_sha256") == provenance["sha256"] else []
    rows = {row["method"]: row for row in kept}
    for method in arguments.methods:
        rows[method] = row = calibrated(model, method, clips_for(method, arguments.share))
        rates = ", ".join(f"{level['alpha']:g}: {level['held_out_rate']:.3g}" for level in row.get("levels", []))
        print(f"{method}: {rates or row['impossible']}", flush=True)
        result = {
            "what": "false-positive rates of calibrated thresholds on held-out frozen clips, demo model",
            "weights_sha256": provenance["sha256"],
            "machine": machine(),
            "rows": [rows[name] for name in sr.METHODS if name in rows],
        }
        write_json(RESULTS, result)


if __name__ == "__main__":
    main()
