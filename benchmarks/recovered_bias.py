"""Does a measure recover how much a network was taught to look at the scene? Networks trained at five biases.

    python benchmarks/recovered_bias.py [--seeds 3] [--clips 48] [--work FOLDER]

At bias b a share b of the clips that a network learns from shows the scene that belongs to its class; in the others the
scene is drawn at random, so that the sprite's motion alone tells the class. Small3D learns 48×48 clips at b = 0, 0.25,
0.5, 0.75 and 1, from several seeds. Then every network sees the same fresh clips, in which motion and scene agree, and
for each measure of static reliance Spearman's correlation with the dial is computed over all networks, with a 95 %
interval (bootstrap over seeds, within each setting). What the network really does is measured without any map: its
accuracy where scenes contradict the motion. One core needs about an hour; networks that --work holds are not trained
again. Results go to results/recovered_bias.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, write_json
from scipy.stats import spearmanr

import selrel_zennit as sr
from selrel_zennit.clips.spec import ClipSpec
from selrel_zennit.evaluate.dataset import read_dataset
from selrel_zennit.metrics import mass_inside
from selrel_zennit.synthetic import SyntheticSpec, frozen, make_clip
from selrel_zennit.training import RECIPES, train

RESULTS = Path(__file__).parent / "results" / "recovered_bias.json"
BIASES = (0.0, 0.25, 0.5, 0.75, 1.0)
SIDE, SEED = 48, 3001
RECIPE = replace(RECIPES["small"], epochs=6, flip=False)
MEASURES = (
    "static part of the margin",
    "static share of motion_lrp",
    "1 - kept mass at 4σ, dtd",
    "1 - kept mass at 4σ, gradcam",
    "1 - kept mass at 4σ, gradient_x_input",
    "accuracy left when frozen",
    "accuracy lost where the scene contradicts",
)


def trained(bias: float, seed: int, work: Path) -> tuple[Any, float]:
    data = read_dataset(
        f"synthetic:bias={bias},height={SIDE},width={SIDE},distractor=0,train=1600,validation=120,test=8"
    )
    spec = ClipSpec(short_side=SIDE, crop=SIDE)
    found = train(data, work / f"bias{bias:g}-seed{seed}", recipe=RECIPE, spec=spec, seed=seed)
    return sr.load_model("small3d", found.folder / "best.safetensors"), found.minutes


def pixels_of(spec: SyntheticSpec, count: int) -> tuple[np.ndarray, list[int]]:
    clips = [make_clip(spec, SEED, index) for index in range(count)]
    return np.stack([clip.frames for clip in clips]), [clip.class_index for clip in clips]


@torch.inference_mode()
def accuracy(model: Any, pixels: np.ndarray, labels: list[int]) -> float:
    parts = [
        model(torch.from_numpy(model.spec.from_pixels(pixels[first : first + 16]))).argmax(1)
        for first in range(0, len(pixels), 16)
    ]
    return float((torch.cat(parts) == torch.tensor(labels)).float().mean())


def measured(model: Any, count: int) -> dict[str, float]:
    size = {"height": SIDE, "width": SIDE, "distractor": False}
    pixels, labels = pixels_of(SyntheticSpec(bias=1.0, **size), count)
    stills = np.stack([frozen(clip) for clip in pixels])
    agree, still = accuracy(model, pixels, labels), accuracy(model, stills, labels)
    opposed = accuracy(model, *pixels_of(SyntheticSpec(opposed=True, **size), count))
    rows: dict[str, list[float]] = {name: [] for name in MEASURES}
    totals = {"margin": 0.0, "still": 0.0}
    for first in range(0, count, 8):
        clip = torch.from_numpy(model.spec.from_pixels(pixels[first : first + 8]))
        split = sr.explain(model, clip, motion="middle", target=labels[first : first + 8]).split
        assert split is not None
        totals["margin"] += float((split.margin - split.blank_margin).sum())
        totals["still"] += float(split.still.sum())
        sizes = [np.abs(part).sum((1, 2, 3)) for part in (split.static_part, split.motion_part)]
        rows["static share of motion_lrp"] += (sizes[0] / (sizes[0] + sizes[1])).tolist()
        for method in ("dtd", "gradcam", "gradient_x_input"):
            found = sr.explain(
                model, clip, method=method, target=labels[first : first + 8], selection=sr.MotionSelection(n_sigma=4.0)
            )
            rows[f"1 - kept mass at 4σ, {method}"] += (1 - mass_inside(found.relevance, found.mask)).tolist()
    result = {name: float(np.nanmean(values)) for name, values in rows.items() if values}
    return result | {
        # Ratios of sums: single clips have margins near nothing.
        "static part of the margin": totals["still"] / totals["margin"],
        "accuracy left when frozen": still,
        "accuracy lost where the scene contradicts": agree - opposed,
        "accuracy": agree,
        "accuracy, scenes opposed": opposed,
    }


def correlation(networks: list[dict[str, Any]], name: str) -> dict[str, float] | None:
    """Return Spearman's correlation of a measure with the dial and its interval over seeds; None for a constant."""
    dial, values = (np.array([one[key] for one in networks]) for key in ("bias", name))
    if len(set(values)) < 2:
        return None
    random = np.random.default_rng(0)
    places = [np.flatnonzero(dial == bias) for bias in BIASES]
    drawn = []
    for _ in range(2000):
        chosen = np.concatenate([random.choice(place, len(place)) for place in places])
        if len(set(values[chosen])) > 1:
            drawn.append(spearmanr(dial[chosen], values[chosen]).statistic)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {"spearman": float(spearmanr(dial, values).statistic), "low": float(low), "high": float(high)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--work", type=Path, default=Path("out/recovered_bias"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    began = time.perf_counter()
    networks: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for bias in BIASES:
            model, minutes = trained(bias, seed, arguments.work)
            networks.append({"bias": bias, "seed": seed, "minutes": minutes, **measured(model, arguments.clips)})
            print({key: round(value, 3) for key, value in networks[-1].items()}, flush=True)
    write_json(
        arguments.out,
        {
            "what": "Spearman's correlation of measures of static reliance with the bias that networks were trained at",
            "command": " ".join(["python benchmarks/recovered_bias.py", *sys.argv[1:]]),
            "machine": machine(),
            "clips": arguments.clips,
            "minutes": (time.perf_counter() - began) / 60,
            "correlations": {name: correlation(networks, name) for name in MEASURES},
            "networks": networks,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
