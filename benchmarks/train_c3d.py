"""C3D of full width, trained briefly on synthetic clips on a GPU: what it learns, and what its explanations are worth.

    python benchmarks/train_c3d.py [--clips 16000] [--device cuda] [--weights FILE] [--out FILE]

The stages of train_demo.py with fewer clips, some minutes on a GPU of a data centre. Then, on fresh clips: accuracy;
class sensitivity of methods, the cosine of the top class's map and the runner-up's; and the certificate of the compiled
DTD on the device, in float32, TF32 and bf16, against Zennit on the processor. The weights (314 MB, for
``--model c3d --weights FILE --num-classes 8``) serve other commands, ``selrel parity`` and ``selrel bench`` among them.

Without a GPU: one line, exit code 2. ``--device cpu --width 2 --hidden 8 --clips 64`` rehearses it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from machine import machine, write_json
from train_demo import SEEDS, STAGES, Learner, save, score, train

import selrel_zennit as sr
from selrel_deploy import compile_explanation, open_runner
from selrel_deploy.bench.reference import Remembered, ZennitExplains
from selrel_deploy.bench.report import parity_figures
from selrel_deploy.parity.certify import certify
from selrel_zennit import metrics
from selrel_zennit.synthetic import GENERATOR_VERSION, SyntheticSpec, make_clip

RESULTS = Path(__file__).parent / "results" / "c3d_training_gpu.json"
METHODS = ("dtd", "dtd_epsilon_head", "dtd_contrastive", "gradient", "guided_gradcam", "gradcam")
PRECISIONS = ("fp32", "tf32", "bf16")
# A stage has at least this many batches, so that its schedule has steps to go through.
LEAST_BATCHES = 4


def sensitivity(model: Any, clips: torch.Tensor) -> dict[str, Any]:
    """Return the cosine of two classes' maps, per method: its mean and the values clip by clip."""
    found = {}
    for method in METHODS:
        values = [float(metrics.class_sensitivity(model, clip[None], method).cosine[0]) for clip in clips]
        found[method] = {"mean": float(np.nanmean(values)), "values": values}
    return found


def certificates(model: Any, clips: torch.Tensor, device: str) -> dict[str, Any]:
    """Return the parity of compiled DTD on the device, per precision; the model is on the processor."""
    selection = sr.MotionSelection()
    attributor = sr.build_method("dtd", model)
    reference = Remembered(ZennitExplains(attributor, selection))
    found = {}
    for precision in PRECISIONS:
        tf32 = precision == "tf32"
        if tf32 and device == "cpu":
            continue
        graph = compile_explanation(attributor, clips[:1], selection, "fp32" if tf32 else precision)
        options: dict[str, Any] = {} if device == "cpu" else {"device": device, **({"tf32": True} if tf32 else {})}
        with open_runner(graph, "inductor", **options) as run:
            found[precision] = parity_figures(certify(run, reference, clips.numpy(), selection.settings))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16_000, help="to train on (default 16000)")
    parser.add_argument("--tests", type=int, default=400, help="fresh clips to test on (default 400)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a rehearsal")
    parser.add_argument("--width", type=int, default=64, help="channels of the first convolution (default 64)")
    parser.add_argument("--hidden", type=int, default=4096, help="units of the linear layers (default 4096)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that make clips")
    parser.add_argument("--weights", type=Path, default=Path("out/c3d.safetensors"))
    parser.add_argument("--out", type=Path, help=f"default: results/{RESULTS.name}; of a rehearsal none")
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        print("error: this training needs a CUDA device, and torch sees none", file=sys.stderr)
        return 2
    # Before any clip is made: a process that is forked off while OpenCV has threads waits for them for ever.
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    share = arguments.clips / sum(stage.clips for stage in STAGES)
    # A wide network learns at a lower rate.
    rate = min(1.0, (8 / arguments.width) ** 0.5)
    stages = tuple(
        replace(
            stage,
            clips=max(int(stage.clips * share), LEAST_BATCHES * stage.batch),
            learning_rate=stage.learning_rate * rate,
        )
        for stage in STAGES
    )
    learner = Learner(arguments.width, arguments.hidden)
    model, log, minutes = train(stages, arguments.workers, arguments.weights, learner, arguments.device)
    save(model, arguments.weights)
    fresh = [make_clip(SyntheticSpec(shake=1), SEEDS["opposed"], 10_000 + index).frames for index in range(8)]
    clips = torch.from_numpy(model.spec.from_pixels(np.stack(fresh)))
    model, tests = model.to(arguments.device), arguments.tests
    accuracy = score(model, SyntheticSpec(shake=1), SEEDS["uncorrelated"], tests, tests)
    model = model.cpu()
    result = {
        "what": f"C3D of width {arguments.width}, trained briefly on synthetic clips; its class sensitivity and parity",
        "command": " ".join(["python benchmarks/train_c3d.py", *sys.argv[1:]]),
        "machine": machine(),
        "generator_version": GENERATOR_VERSION,
        "stages": [asdict(stage) for stage in stages],
        "minutes": minutes,
        "log": log,
        "accuracy": accuracy,
        "class_sensitivity": sensitivity(model, clips),
        "parity": certificates(model, clips[:3], arguments.device),
    }
    out = arguments.out or (RESULTS if arguments.device != "cpu" else None)
    if out is not None:
        write_json(out, result)
    cosines = {method: round(found["mean"], 3) for method, found in result["class_sensitivity"].items()}
    grades = {name: found["grade"] for name, found in result["parity"].items()}
    print(json.dumps({"accuracy": accuracy["whole"], "class cosine": cosines, "parity": grades}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
