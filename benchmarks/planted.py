"""What relevance and motion relevance find of a planted cause: methods × selections on synthetic clips.

    python benchmarks/planted.py [--clips 200] [--methods dtd gradient] [--threads N] [--cache FOLDER] [--keep]

Clips of a seed that no training and no calibration has seen; those that the network names rightly, since only there is
the planted motion known to be the reason. Each is explained three times: as it is, frozen to its middle frame (for the
same class), and for the runner-up class. The scores of every clip go to the cache, a file per method, which is used
again as long as clips, weights, selections and code are the same (``--keep``: whatever has become of the code). The
means, with 95 % bootstrap intervals, go to results/planted.json; the tables made from it to results/planted.md. Methods
that are not asked for keep the rows that they have there, if weights and clips are the same.

The competitor of every selection is the same number of voxels of the same map, those with the greatest |R|.

Memory handed back to the system after every batch costs half of the time; glibc keeps it with
``MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184`` in the environment.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from machine import machine, write_json
from tables import planted as planted_tables
from tqdm import tqdm

import selrel_zennit as sr
from selrel_zennit import metrics
from selrel_zennit.calibration.thresholds import ALPHAS, Calibration
from selrel_zennit.comparison import cosine, mask_iou, runner_up
from selrel_zennit.metrics import planted as planted_metrics
from selrel_zennit.synthetic import GENERATOR_VERSION, SyntheticSpec, frozen, make_clip

RESULTS = Path(__file__).parent / "results" / "planted.json"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "selrel-zennit" / "planted"
SEED = 2001
BATCH = 8
RESAMPLES = 2000

Map = npt.NDArray[np.float32]
Select = Callable[[Any], tuple[Any, Any]]
Scores = dict[str, list[float]]


@dataclass(frozen=True)
class Chosen:
    """A clip of the benchmark: its index in the seed, the class explained, and the runner-up."""

    index: int
    target: int
    other: int


@dataclass(frozen=True, eq=False)
class Batch:
    """What is needed of some clips: input as it is and frozen, classes, truth."""

    moving: torch.Tensor
    still: torch.Tensor
    target: list[int]
    other: list[int]
    causal: npt.NDArray[np.bool_]
    distractor: npt.NDArray[np.bool_]
    flow: Map


def choose(model: Any, spec: SyntheticSpec, count: int, wrong_too: bool) -> tuple[list[Chosen], int]:
    """Return the first clips that the network names rightly (or all), and how many had to be drawn."""
    chosen: list[Chosen] = []
    drawn = 0
    while len(chosen) < count:
        if drawn > 20 * count:
            raise SystemExit("the network names hardly a clip rightly: train it first (benchmarks/train_demo.py)")
        clips = [make_clip(spec, SEED, drawn + number) for number in range(BATCH)]
        with torch.inference_mode():
            logits = model(as_input(model, [clip.frames for clip in clips])).float().cpu().numpy()
        top = logits.argmax(1)
        for clip, target, other in zip(clips, top.tolist(), runner_up(logits, top).tolist(), strict=True):
            if len(chosen) < count:
                drawn += 1
                if wrong_too or target == clip.class_index:
                    chosen.append(Chosen(clip.index, target, other))
    return chosen, drawn


def as_input(model: Any, clips: list[npt.NDArray[np.uint8]]) -> torch.Tensor:
    return torch.from_numpy(model.spec.from_pixels(np.stack(clips))).to(next(model.parameters()).device)


def batches(model: Any, spec: SyntheticSpec, chosen: list[Chosen]) -> Iterator[Batch]:
    for start in range(0, len(chosen), BATCH):
        some = chosen[start : start + BATCH]
        clips = [make_clip(spec, SEED, one.index) for one in some]
        yield Batch(
            as_input(model, [clip.frames for clip in clips]),
            as_input(model, [frozen(clip.frames) for clip in clips]),
            [one.target for one in some],
            [one.other for one in some],
            np.stack([clip.causal_mask for clip in clips]),
            np.stack([clip.distractor_mask for clip in clips]),
            np.stack([clip.flow for clip in clips]),
        )


def selections_of(model: Any, method: str) -> dict[str, Select]:
    """Return the selections to compare: the default at 1, 2 and 4 σ, and calibrated ones where thresholds ship."""
    selections: dict[str, Select] = {f"default {n}σ": sr.MotionSelection(n_sigma=n) for n in (1, 2, 4)}
    try:
        calibration = Calibration.shipped(sr.build_method(method, model))
    except sr.InputError:
        return selections
    return selections | {f"calibrated α = {alpha:g}": calibration.selection(alpha) for alpha in ALPHAS}


def measure(model: Any, method: str, spec: SyntheticSpec, chosen: list[Chosen]) -> dict[str, Scores]:
    """Return the scores of every clip: selection ("none" for all relevance) → score → one value per clip."""
    attributor = sr.build_method(method, model)
    selections = selections_of(model, method)
    rows: dict[str, Scores] = {}
    with attributor:
        # disable=None: no bar where standard error is not a terminal.
        for batch in tqdm(batches(model, spec, chosen), method, -(-len(chosen) // BATCH), unit="batch", disable=None):

            def relevance(clips: torch.Tensor, target: list[int]) -> Map:
                _, attribution = attributor(clips, lambda logits: sr.one_hot(target, logits.shape[1]).to(logits))
                return attribution.float().sum(1).cpu().numpy()

            maps = [
                relevance(batch.moving, batch.target),
                relevance(batch.still, batch.target),
                relevance(batch.moving, batch.other),
            ]
            note(rows, "none", whole_scores(maps, batch))
            for name, select in selections.items():
                note(rows, name, selected_scores(maps, select, batch))
    return rows


def note(rows: dict[str, Scores], name: str, scores: dict[str, npt.NDArray[np.float64]]) -> None:
    for score, values in scores.items():
        rows.setdefault(name, {}).setdefault(score, []).extend(values.tolist())


def whole_scores(maps: list[Map], batch: Batch) -> dict[str, npt.NDArray[np.float64]]:
    moving, _, other = maps
    return {
        **metrics.planted_scores(moving, batch.causal, batch.distractor, batch.flow),
        "flow_base_rate": metrics.flow_precision(moving, batch.flow).base_rate,
        "class_cosine": cosine(moving, other),
    }


def selected_scores(maps: list[Map], select: Select, batch: Batch) -> dict[str, npt.NDArray[np.float64]]:
    moving, still, _ = maps
    (motion, mask), (_, still_mask), (other_motion, other_mask) = (select(one) for one in maps)
    kept = motion != 0
    count = kept.sum((1, 2, 3))
    top = metrics.top_share(moving, count, batch.causal)
    top_distractor = metrics.top_share(moving, count, batch.distractor)
    top_swept = metrics.top_share(moving, count, metrics.swept(batch.causal))
    scores = {
        "area": metrics.kept_area(moving, mask),
        "mass": metrics.mass_inside(moving, mask),
        "frozen_area": metrics.kept_area(still, still_mask),
        "frozen_mass": metrics.mass_inside(still, still_mask),
        **metrics.planted_scores(motion, batch.causal, batch.distractor, batch.flow),
        "causal_precision": metrics.mass_inside(kept.astype(np.float32), batch.causal),
        "top_causal_mass": top.mass,
        "top_distractor_mass": top_distractor.mass,
        "top_swept_mass": top_swept.mass,
        "top_causal_precision": top.area,
        "class_cosine": cosine(motion, other_motion),
        "class_mask_iou": mask_iou(mask, other_mask),
    }
    for name in ("causal_mass", "swept_mass", "distractor_mass", "causal_precision"):
        scores[f"{name}_gain"] = scores[name] - scores[f"top_{name}"]
    return scores


def interval(values: list[float], seed: int = 0) -> dict[str, float | int | None]:
    """Return the mean of the values that are defined, its 95 % percentile bootstrap interval, and their number."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    if not known.size:
        return {"mean": None, "low": None, "high": None, "n": 0}
    drawn = np.random.default_rng(seed).integers(known.size, size=(RESAMPLES, known.size))
    low, high = np.quantile(known[drawn].mean(1), [0.025, 0.975])
    return {"mean": digits(known.mean()), "low": digits(low), "high": digits(high), "n": int(known.size)}


def digits(value: float) -> float:
    return float(f"{value:.5g}")


def fingerprints(model: Any, method: str, spec: SyntheticSpec, chosen: list[Chosen]) -> dict[str, str]:
    """Return hashes of all that the scores of a method depend on: "data" (weights, clips, selections) and "code"."""
    data = repr((method, GENERATOR_VERSION, SEED, spec, chosen, selections_of(model, method))).encode()
    weights = [value.cpu().numpy().tobytes() for value in model.state_dict().values()]
    files: set[Path] = {Path(__file__)}
    for name in (sr.METHODS[method].build.__module__, sr.MotionSelection.__module__, planted_metrics.__name__):
        add_code(name, files)
    return {"data": joint_hash([data, *weights]), "code": joint_hash(path.read_bytes() for path in sorted(files))}


def joint_hash(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def add_code(module_name: str, files: set[Path]) -> None:
    """Add the file of a module of this project, and of those whose functions and classes it uses."""
    module = sys.modules[module_name]
    path = Path(str(module.__file__))
    if path not in files:
        files.add(path)
        # A package offers names that it loads when they are first used: what is used says where it comes from itself.
        for value in [] if hasattr(module, "__path__") else list(vars(module).values()):
            used = getattr(value, "__module__", value.__name__ if inspect.ismodule(value) else None)
            if isinstance(used, str) and used.startswith(("selrel_zennit", "selrel_kernels")):
                add_code(used, files)


def scores_of(
    model: Any, method: str, spec: SyntheticSpec, chosen: list[Chosen], cache: Path, check: Iterable[str]
) -> dict[str, Any]:
    """Return the scores of a method, from the cache where the fingerprints named by ``check`` are the same."""
    path, found = cache / f"{method}.json", fingerprints(model, method, spec, chosen)
    if path.exists():
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if all(held["fingerprints"][name] == found[name] for name in check):
            return held
    since = time.perf_counter()
    rows = measure(model, method, spec, chosen)
    held = {"fingerprints": found, "clips": len(chosen), "seconds": time.perf_counter() - since, "rows": rows}
    write_json(path, held)
    return held


def truth(spec: SyntheticSpec, chosen: list[Chosen]) -> dict[str, Any]:
    """Return what share of the clips the sprites cover: the scores of a map that knows nothing."""
    clips = [make_clip(spec, SEED, one.index) for one in chosen]
    return {
        "causal_area": interval([float(clip.causal_mask.mean()) for clip in clips]),
        "distractor_area": interval([float(clip.distractor_mask.mean()) for clip in clips]),
    }


def add_known(result: dict[str, Any], path: Path) -> None:
    """Add the methods that a results file holds for the same weights and clips, in the order of the registry."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same_weights = known.get("model", {}).get("sha256") == result["model"]["sha256"]
    if same_weights and all(known.get(key) == result[key] for key in ("generator_version", "clips", "interval")):
        methods = known["methods"] | result["methods"]
        result["methods"] = {name: methods[name] for name in sr.METHODS if name in methods}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200, help="clips (default 200)")
    parser.add_argument("--methods", nargs="+", choices=list(sr.METHODS), default=list(sr.METHODS))
    parser.add_argument("--keep", action="store_true", help="use the cache also where code has changed since")
    parser.add_argument("--weights", help="weights of the demo model (default: those that ship)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (default: all cores)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the scores per clip")
    parser.add_argument("--out", type=Path, default=RESULTS, help="results file; the tables stand beside it")
    parser.add_argument("--quick", action="store_true", help="4 clips, named rightly or not, to see that all works")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    count = 4 if arguments.quick else arguments.clips

    spec = SyntheticSpec()
    model: Any = sr.load_model("demo", arguments.weights, device=arguments.device)
    chosen, drawn = choose(model, spec, count, wrong_too=arguments.quick)
    check = ("data",) if arguments.keep else ("data", "code")
    held = {method: scores_of(model, method, spec, chosen, arguments.cache, check) for method in arguments.methods}
    result = {
        "what": "scores of relevance and motion relevance against a planted cause",
        "command": f"python benchmarks/planted.py --clips {count} --threads {arguments.threads}",
        "machine": machine(),
        "model": model.provenance,
        "generator_version": GENERATOR_VERSION,
        "clips": {
            "seed": SEED,
            "spec": asdict(spec),
            "drawn": drawn,
            "explained": len(chosen),
            "which": "all" if arguments.quick else "those named rightly",
            **truth(spec, chosen),
        },
        "interval": f"95 %, percentile bootstrap over clips, {RESAMPLES} resamples",
        "methods": {
            name: {
                "clips": one["clips"],
                "seconds": round(one["seconds"], 1),
                "warning": sr.METHODS[name].warning,
                "rows": {
                    row: {score: interval(values) for score, values in scores.items()}
                    for row, scores in one["rows"].items()
                },
            }
            for name, one in held.items()
        },
    }
    add_known(result, arguments.out)
    write_json(arguments.out, result)
    tables = planted_tables(result)
    arguments.out.with_suffix(".md").write_text(tables, encoding="utf-8")
    print(tables)


if __name__ == "__main__":
    main()
