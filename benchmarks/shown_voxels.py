"""Which voxels to show? Selectors of one area each, against the voxels of the greatest relevance, on planted causes.

    python benchmarks/shown_voxels.py [--clips 100] [--method dtd]

For each clip that the demo model names rightly, the paper's selection at 1, 2 and 4 σ gives an area. Every selector
then takes as many voxels, those for which its own measure is greatest:

    paper                 the selection itself: |Sobel over time of R| above n·σ
    motion                |R_motion|, motion LRP against the middle frame
    motion, positive      R_motion where it speaks for the class
    relevance × change    |R| · |Sobel over time of R|
    relevance × motion    √(|R| · |R_motion|): both agree on the voxel
    agreement over frames √(mean of |R| over three frames · mean of |R_motion| over three frames)
    change of the clip    |x − mean over time of x|: no network at all

and is scored by the share of its voxels on the sprite whose motion is the class, and on what that sweeps from the frame
before to the one after. The difference from the same number of voxels of the greatest |R| is over clips, with 95 %
bootstrap intervals. Results go to results/shown_voxels.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, write_json
from planted import SEED, as_input, choose
from scipy.ndimage import uniform_filter1d

import selrel_zennit as sr
from selrel_kernels.reference import motion_gradient
from selrel_zennit.evaluate.statistics import interval
from selrel_zennit.metrics import swept, top_share
from selrel_zennit.synthetic import SyntheticSpec, make_clip

RESULTS = Path(__file__).parent / "results" / "shown_voxels.json"
BATCH = 8


def measures(relevance: np.ndarray, motion: np.ndarray, clip: np.ndarray) -> dict[str, np.ndarray]:
    """Return what each selector ranks voxels by, [B,T,H,W]; ``clip`` is the input summed over channels' distances."""
    gradient = np.abs(motion_gradient(torch.from_numpy(relevance)).numpy())
    size, moved = np.abs(relevance).astype(np.float64), np.abs(motion).astype(np.float64)

    def smooth(values: np.ndarray) -> np.ndarray:
        return np.asarray(uniform_filter1d(values, 3, axis=1, mode="nearest"))

    return {
        "motion": moved,
        "motion, positive": np.maximum(motion, 0).astype(np.float64),
        "relevance × change": size * gradient,
        "relevance × motion": np.sqrt(size * moved),
        "agreement over frames": np.sqrt(smooth(size) * smooth(moved)),
        "change of the clip": clip.astype(np.float64),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--method", default="dtd")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    model: Any = sr.load_model("demo")
    spec = SyntheticSpec(shake=0)
    chosen, drawn = choose(model, spec, arguments.clips, False)
    whole, motion = (
        sr.build_method(arguments.method, model),
        sr.build_method("motion_lrp", model, reference="middle"),
    )
    found: dict[str, dict[str, list[float]]] = {}
    for start in range(0, len(chosen), BATCH):
        some = chosen[start : start + BATCH]
        clips = [make_clip(spec, SEED, one.index) for one in some]
        input = as_input(model, [clip.frames for clip in clips])
        initial = sr.one_hot([one.target for one in some], len(model.class_names))
        relevance, moved = (attributor(input, initial)[1].float().sum(1) for attributor in (whole, motion))
        distance = (input - input.mean(2, keepdim=True)).abs().sum(1).numpy()
        ranked = measures(relevance.numpy(), moved.numpy(), distance)
        causal = np.stack([clip.causal_mask for clip in clips])
        for n in (1, 2, 4):
            _, mask = sr.MotionSelection(n_sigma=n)(relevance)
            kept = mask.numpy()
            count = kept.sum((1, 2, 3))
            for name, region in (("cause", causal), ("swept", swept(causal))):
                rows = found.setdefault(f"{n}σ, {name}", {})
                rows.setdefault("relevance", []).extend(top_share(relevance.numpy(), count, region).area)
                rows.setdefault("paper", []).extend((kept & region).sum((1, 2, 3)) / count)
                for key, values in ranked.items():
                    rows.setdefault(key, []).extend(top_share(values, count, region).area)
        print(f"{start + len(some)} of {len(chosen)} clips", flush=True)
    tables: dict[str, Any] = {}
    for name, rows in found.items():
        base = np.array(rows["relevance"])
        tables[name] = {"relevance": interval(base.tolist()).to_dict()}  # type: ignore[union-attr]
        for key, values in rows.items():
            if key != "relevance":
                share, difference = interval(values), interval((np.array(values) - base).tolist())
                assert share is not None
                assert difference is not None
                tables[name][key] = {"share": share.to_dict(), "more than relevance": difference.to_dict()}
        print(name, {key: round(one.get("share", one)["mean"], 3) for key, one in tables[name].items()}, flush=True)
    write_json(
        arguments.out,
        {
            "what": "share of the voxels that a selector shows which lie on the planted cause, at the area of n·σ",
            "command": " ".join(["python benchmarks/shown_voxels.py", *sys.argv[1:]]),
            "machine": machine(),
            "clips": len(chosen),
            "drawn": drawn,
            "method": arguments.method,
            "tables": tables,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
