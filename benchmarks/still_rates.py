"""False-positive rates of the shipped calibrations for the class that matters: the moving clip's.

    python benchmarks/still_rates.py [--methods NAME ...] [--clips 200] [--threads N]

The clips are those of planted.py, which neither training nor calibration has seen, frozen to their middle frame and
explained for the class of the moving clip. Nothing moves in them, so what passes is in error. Rates are of all voxels
of the time steps at which anything can pass; alarms are the share of clips in which regions at q = 0.1 keep anything.
Methods that were not asked for keep their rows.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, write_json
from planted import batches, choose

import selrel_zennit as sr
from selrel_zennit.calibration.thresholds import REGION_Q, TOLERANCE, Calibration
from selrel_zennit.synthetic import SyntheticSpec

RESULTS = Path(__file__).parent / "results" / "still_rates.json"


def rates(model: Any, method: str, chosen: list[Any]) -> dict[str, Any]:
    """Return the rate of each alpha with its standard error over clips, and the share of alarms."""
    attributor = sr.build_method(method, model)
    calibration = Calibration.shipped(attributor)
    selections = {alpha: calibration.selection(alpha) for alpha in calibration.alphas}
    regions = None if calibration.regions is None else calibration.region_selection(REGION_Q)
    found: dict[float, list[float]] = {alpha: [] for alpha in selections}
    alarms: list[float] = []
    with attributor:
        for batch in batches(model, SyntheticSpec(), chosen):

            def initial(logits: torch.Tensor, target: list[int] = batch.target) -> torch.Tensor:
                return sr.one_hot(target, logits.shape[1]).to(logits)

            relevance = attributor(batch.still, initial)[1].float().sum(1)
            for alpha, selection in selections.items():
                alive = torch.from_numpy(np.asarray(selection.thresholds) > 0)
                steps = alive if alive.any() else ~alive
                found[alpha] += selection.mask(relevance)[:, steps].float().mean((1, 2, 3)).tolist()
            if regions is not None:
                alarms += regions.mask(relevance).flatten(1).any(1).float().tolist()
    return {
        "method": method,
        "classes of the calibration": calibration.classes,
        "rates": {
            f"{alpha:g}": {
                "rate": float(np.mean(values)),
                "error": float(np.std(values, ddof=1) / len(values) ** 0.5),
                "within_20_percent": bool(abs(np.mean(values) - alpha) <= TOLERANCE * alpha),
            }
            for alpha, values in found.items()
        },
        "alarms": float(np.mean(alarms)) if alarms else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(sr.METHODS), default=list(sr.METHODS), metavar="NAME")
    parser.add_argument("--clips", type=int, default=200, help="clips (default 200)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (default: all cores)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model: Any = sr.load_model("demo")
    chosen, _ = choose(model, SyntheticSpec(), arguments.clips, wrong_too=False)
    earlier = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    rows = {row["method"]: row for row in earlier.get("rows", [])}
    for method in arguments.methods:
        try:
            rows[method] = rates(model, method, chosen)
        except sr.InputError as error:
            print(f"{method}: {error}", flush=True)
            continue
        said = ", ".join(f"{alpha}: {row['rate']:.3g}" for alpha, row in rows[method]["rates"].items())
        print(f"{method}: {said}; alarms {rows[method]['alarms']}", flush=True)
        result = {
            "what": "voxels of still clips that pass, explained for the moving clip's class, demo model",
            "command": f"python benchmarks/still_rates.py --clips {arguments.clips} --threads {arguments.threads}",
            "weights_sha256": model.provenance["sha256"],
            "clips": len(chosen),
            "machine": machine(),
            "rows": [rows[name] for name in sr.METHODS if name in rows],
        }
        write_json(RESULTS, result)


if __name__ == "__main__":
    main()
