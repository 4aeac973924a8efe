"""What the methods cost on C3D of full width, in forward passes, beside Captum and pytorch-grad-cam.

    python benchmarks/methods_cost.py [--rounds 7] [--threads 2]

The clip is real where SELREL_DATA names the folder of clips, else noise. All calls run in one process, one of each in
turn, so that whatever else the machine does falls on all of them. Ratios are of medians; the file keeps every sample.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import PACKAGES, machine, write_json
from torch import nn

import selrel_zennit as sr

RESULTS = Path(__file__).parent / "results" / "methods_cost.json"
CLIP = "v_CricketShot_g04_c01_rgb.gif"
METHODS = ("gradient", "guided_backprop", "gradcam", "guided_gradcam", "dtd")
TARGET = 7


def clip_for(model: Any) -> tuple[str, torch.Tensor]:
    """Return what the clip is, and the clip [1,3,16,112,112] in model units."""
    folder = os.environ.get("SELREL_DATA")
    if folder:
        return CLIP, model.spec.clip(sr.read_frames(Path(folder) / CLIP, count=16))
    low, high = (torch.from_numpy(bound) for bound in model.spec.bounds())
    noise = torch.rand((1, *model.spec.shape), generator=torch.Generator().manual_seed(0))
    return "uniform noise", low + (high - low) * noise


def calls(model: nn.Module, clip: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Return what is timed: a forward pass, this project's methods, and the peers' at the same layer."""
    from captum.attr import GuidedGradCam, LayerGradCam
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layer = dict(model.named_modules())[str(model.cam_layer)]
    target = sr.one_hot(TARGET, 101)

    def forward() -> None:
        with torch.inference_mode():
            model(clip)

    def own(name: str) -> Callable[[], Any]:
        attributor = sr.build_method(name, model)
        return lambda: attributor(clip, target)

    layer_gradcam, guided = LayerGradCam(model, layer), GuidedGradCam(model, layer)

    def captum_guided() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            guided.attribute(clip.clone().requires_grad_(), target=TARGET, interpolate_mode="trilinear")

    def pytorch_grad_cam() -> None:
        # It runs backward() with the parameters it finds; load_model's are frozen, so the clip must ask for gradients.
        with GradCAM(model=model, target_layers=[layer]) as peer:
            peer(clip.clone().requires_grad_(), targets=[ClassifierOutputTarget(TARGET)])

    return {
        "forward": forward,
        **{name: own(name) for name in METHODS},
        "captum LayerGradCam": lambda: layer_gradcam.attribute(
            clip.clone().requires_grad_(), target=TARGET, relu_attributions=True
        ),
        "captum GuidedGradCam": captum_guided,
        "pytorch-grad-cam GradCAM": pytorch_grad_cam,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="calls of each (default 7), after one that is not kept")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    model = sr.load_model("c3d", weights="random", num_classes=101)
    source, clip = clip_for(model)
    timed = calls(model, clip)
    load_before = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for round_ in range(arguments.rounds + 1):
        for name, call in timed.items():
            start = time.perf_counter()
            call()
            taken = time.perf_counter() - start
            if round_ > 0:
                seconds[name].append(taken)
    medians = {name: statistics.median(samples) for name, samples in seconds.items()}
    result = {
        "command": f"python benchmarks/methods_cost.py --rounds {arguments.rounds} --threads {arguments.threads}",
        "machine": machine((*PACKAGES, "captum", "grad-cam")),
        "load_average": {"before": load_before, "after": os.getloadavg()[0]},
        "model": "c3d, random weights, 101 classes",
        "clip": source,
        "shape": list(clip.shape),
        "rows": {
            name: {
                "median_s": medians[name],
                "over_forward": medians[name] / medians["forward"],
                "samples_s": samples,
            }
            for name, samples in seconds.items()
        },
    }
    write_json(RESULTS, result)

    print(f"load average before {load_before:.1f}, after {os.getloadavg()[0]:.1f}")
    for name, median in medians.items():
        print(f"{name:<26} {median:7.3f} s  {median / medians['forward']:5.2f} × forward")


if __name__ == "__main__":
    main()
