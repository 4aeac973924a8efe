"""How much of a 4σ selection lies in the first and last frames, with a border of zeros and a replicated one.

    SELREL_DATA=FOLDER python benchmarks/borders.py

DTD of a C3D with random weights on the first 16 frames of every real clip; writes results/borders.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from machine import machine
from real_clips import CLIPS, clip_of

import selrel_zennit as sr
from selrel_kernels.reference import motion_gradient

RESULTS = Path(__file__).parent / "results" / "borders.json"


def shares(mask: Any) -> dict[str, float]:
    """Return the share of the kept voxels that lies in the outermost frames, and in those next to them."""
    kept = mask[0].flatten(1).sum(1).double()
    total = float(kept.sum())
    return {
        "frames 0 and 15": float(kept[[0, -1]].sum()) / total,
        "frames 1 and 14": float(kept[[1, -2]].sum()) / total,
    }


def main() -> None:
    model = sr.load_model("c3d", weights="random", num_classes=101)
    rows = {}
    with sr.build_method("dtd", model) as attributor:
        for name in CLIPS:
            clip = clip_of(model, name)
            relevance = attributor(clip, sr.one_hot(0, 101))[1]
            rows[name] = {
                border: {
                    **shares(sr.MotionSelection(n_sigma=4, border=border).mask(relevance)),
                    "std |G| over std G": float(gradient.abs().std() / gradient.std()),
                }
                for border in ("zero", "replicate")
                for gradient in [motion_gradient(relevance, border)]
            }
            print(name, rows[name])
    found = {
        "what": "share of the voxels kept at 4 sigma, DTD of C3D with random weights",
        "machine": machine(),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
