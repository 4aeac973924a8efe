"""The networks of the pack, method by method: equal to hand-placed rules, conserving, compiled, built.

    python benchmarks/networks.py [--networks all] [--methods all] [--threads 2] [--rounds 5] [--clips 3]

Random weights, batch norms with drawn statistics. On a small clip in float64: the difference to Zennit with rules that
are placed by hand (hand_placed.py), and how much of the relevance arrives where the network has no biases. At full
size in float32: the artifact in ONNX Runtime certified against Zennit on clips (real ones where SELREL_DATA names their
folder), the build by TensorRT-RTX, and the time of an explanation in a runner against the network's forward pass there,
in turns. Of the transformers, which do not compile: what the linter says, and the time in torch. Rows of networks and
methods that are not asked for stay in the file, so that a run can be continued.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hand_placed import RULES, explain, reference
from machine import PACKAGES, machine, write_json
from real_clips import certificate_clips, golden_clip
from tables import built
from torch import nn

import selrel_zennit as sr
from selrel_deploy import compile_explanation, open_runner, read_artifact
from selrel_deploy.artifact import export
from selrel_deploy.bench.plain import run_alone
from selrel_deploy.parity.certify import certify
from selrel_deploy.parity.zennit_reference import zennit_reference
from selrel_deploy.runners.tensorrt import engine_lint
from selrel_zennit.lint.linter import lint

RESULTS = Path(__file__).parent / "results" / "networks.json"
METHODS = (*RULES, "guided_backprop", "gradcam", "guided_gradcam")
NETWORKS = (
    "r3d_18",
    "mc3_18",
    "r2plus1d_18",
    "s3d",
    "i3d",
    "resnet3d_18",
    "resnet3d_18a",
    "resnet3d_34",
    "resnet3d_34a",
    "resnet3d_50",
    "x3d_s",
    "tsm_resnet50",
    "resnet50_lstm",
)
# Transformers, by the methods that fit them: in torch alone, since neither compiles.
IN_TORCH = dict.fromkeys(("swin3d_t", "mvit_v2_s"), ("lrp_epsilon_plus", "gradcam"))
# Frames and pixels of the clip that rules by hand are held against; 8 of 32×32 for the others. The inceptions' "same"
# padding is there what it is at 193 pixels, the least that I3D is built for.
SMALL = {"s3d": (9, 33), "i3d": (9, 33)}
# Of their own 128 and 64 frames an explanation takes more than 10 GB; sizes along space are their own.
FRAMES = {"s3d": 16, "i3d": 16}
# With drawn statistics features grow from block to block, until every gate is open or shut.
GATED = ("x3d_s", "resnet50_lstm")
CLASSES = 400
LIMITS = {"hand_placed": 1e-9, "conserved": 1e-3, "cosine": 0.99999}


def network(name: str, spec: sr.ClipSpec | None = None) -> Any:
    """Return the network, its batch norms as after training."""
    model = sr.load_model(name, weights="random", num_classes=CLASSES, spec=spec)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            for values, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
            ):
                values.data.uniform_(low, high, generator=generator)
    if name in GATED:
        _statistics_of_a_clip(model)
    return model


def _statistics_of_a_clip(model: Any) -> None:
    """Give batch norms the statistics of what reaches them, as training does."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        model(golden_clip(model.spec))
    model.eval()


def small(name: str) -> Any:
    """Return the network for a small clip, in float64.

    The last pool of S3D and I3D, 2×7×7 wide, is one over all positions there: no position is left out by it.
    """
    full = network(name).spec
    frames, size = SMALL.get(name, (8, 32))
    spec = replace(full, frames=frames, short_side=size, crop=size)
    if name not in SMALL:
        return network(name, spec).double()
    model = network(name, replace(spec, short_side=193, crop=193)).double()
    model.spec = spec
    model.set_submodule("avgpool" if name == "s3d" else "avg_pool", nn.AdaptiveAvgPool3d(1).eval())
    return model


def by_hand(name: str, method: str) -> dict[str, float]:
    """Return the difference to hand-placed rules, and the share of relevance that arrives, in float64.

    In a convolution of one channel alone, as X3D-S has them, the few products of a unit may all be negative: z⁺ gives
    nothing on there. That share is counted as ``ended``, and is part of ``conserved``.
    """
    model = small(name)
    bounds = [torch.from_numpy(bound).double() for bound in model.spec.bounds()]
    noise = torch.rand(1, *model.spec.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    clip = bounds[0] + (bounds[1] - bounds[0]) * noise
    with torch.no_grad():
        target = sr.one_hot(model(clip).argmax(1), CLASSES).double()
    found = {}
    with sr.build_method(method, model) as attributor:
        _, relevance = attributor(clip, target)
    placed, layer = reference(name, model)
    expected = explain(method, placed.eval(), layer, clip, target, bounds)
    found["hand_placed"] = float((relevance - expected).norm() / expected.norm())
    if method not in RULES:
        return found
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            # Merged, a shift is a bias: where all inputs of a unit are zero, what its bias made has nowhere to go.
            module.running_mean.zero_()
            module.bias.data.zero_()
    options = {} if method.startswith("dtd") else {"zero_params": "bias"}
    ended = ends_in_single_channels(model) if name == "x3d_s" and method != "lrp_epsilon_gamma_box" else None
    with sr.build_method(method, model, **options) as attributor:
        found["conserved"] = float(attributor(clip, target)[1].sum())
    if ended is not None:
        found["ended"] = float(sum(ended))
        found["conserved"] += found["ended"]
    return found


def ends_in_single_channels(model: nn.Module) -> list[torch.Tensor]:
    """Return a list that an explanation fills: relevance of units without a positive product, in grouped layers."""
    ended: list[torch.Tensor] = []

    def note(layer: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if not output.requires_grad:
            return
        given, weight = args[0].detach(), layer.weight.detach()
        pairs = ((given.clamp(min=0), weight.clamp(min=0)), (given.clamp(max=0), weight.clamp(max=0)))
        # Without its bias, which the rules that conserve drop.
        positive = sum(layer._conv_forward(values, weights, None) for values, weights in pairs)
        output.register_hook(lambda relevance: ended.append(relevance[positive <= 0].sum()))

    for module in model.modules():
        if isinstance(module, nn.Conv3d) and module.groups > 1:
            module.register_forward_hook(note)
    return ended


def compiled(name: str, method: str, threads: int, rounds: int, count: int) -> dict[str, Any]:
    """Return what the artifact of one method is at full size: parity, build, times."""
    model = network(name, replace(network(name).spec, frames=FRAMES[name]) if name in FRAMES else None)
    attributor = sr.build_method(method, model)
    start = time.perf_counter()
    graph = compile_explanation(attributor, torch.zeros(1, *model.spec.shape))
    seconds = {"compile": time.perf_counter() - start}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        path = export(graph, Path(folder) / "a.onnx", clips=golden_clip(model.spec), external_data=True)
        seconds["export"] = time.perf_counter() - start
        artifact = read_artifact(path)
        clips, names = certificate_clips(artifact, model.spec, count)
        with open_runner(path, "onnxruntime", threads=threads) as run:
            with attributor:
                certificate = certify(run, zennit_reference(attributor, artifact), clips, artifact.selection)
            forwards = {
                runner: run_alone(model, clips[:1], runner, threads, Path(folder))
                for runner in ("eager", "onnxruntime")
            }
            with open_runner(graph, "eager") as eager:
                explained = {"eager": eager, "onnxruntime": run}
                times = _times(explained, forwards, clips[:1], rounds)
        lint = engine_lint.build(path) if engine_lint.installed() else None
    maps = [entry for entry in certificate.comparisons if entry.output == "relevance"]
    return {
        "grade": certificate.grade,
        "reasons": certificate.reasons,
        "cosine": min(entry.cosine for entry in maps),
        "norm_error": max(entry.norm_error for entry in maps),
        "clips": names,
        "clip_shape": list(graph.clip_shape),
        "operations": graph.passes[-1].operations,
        "tensorrt_rtx": lint.version if lint else None,
        "refusals": [str(refusal) for refusal in lint.refusals] if lint else None,
        "plan_bytes": lint.plan_bytes.get("explanation") if lint else None,
        "seconds": seconds,
        "over_forward": {
            runner: statistics.median(times[f"{runner} explanation"]) / statistics.median(times[f"{runner} forward"])
            for runner in forwards
        },
        "samples_s": times,
    }


def in_torch(name: str, method: str, rounds: int) -> dict[str, Any]:
    """Return the time of an explanation by its attributor against the forward pass, and what the linter says of it."""
    model = network(name)
    clip = golden_clip(model.spec)
    target = sr.one_hot(0, CLASSES)
    row: dict[str, Any] = {"clip_shape": list(clip.shape)}
    if method.startswith("lrp"):
        report = lint(model, method, zero_params="bias")
        # The constant of a softmax's expansion and class tokens take shares that are theirs.
        row |= {"ended": report.absorbed, "conserved": report.conserved + report.absorbed}
        row["findings"] = [f"{finding.module}: {finding.message}" for finding in report.findings]

    def forward(clip: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(clip)

    with sr.build_method(method, model) as attributor:
        calls = {"eager": lambda clip, _: attributor(clip, target)}
        times = _times(calls, {"eager": forward}, clip, rounds)
    ratio = statistics.median(times["eager explanation"]) / statistics.median(times["eager forward"])
    return row | {"over_forward": {"eager": ratio}, "samples_s": times}


def _times(explained: dict[str, Any], forwards: dict[str, Any], clip: Any, rounds: int) -> dict[str, list[float]]:
    """Return seconds of explanations and forward passes, taken in turns after one round that is not kept."""
    times: dict[str, list[float]] = {}
    for round_ in range(rounds + 1):
        for runner, forward in forwards.items():
            for kind, call in (("forward", forward), ("explanation", explained[runner])):
                start = time.perf_counter()
                call(clip) if kind == "forward" else call(clip, None)
                taken = time.perf_counter() - start
                if round_:
                    times.setdefault(f"{runner} {kind}", []).append(taken)
    return times


def faults(row: dict[str, Any]) -> list[str]:
    """Return which limits a row breaks."""
    found = [] if row.get("hand_placed", 0) <= LIMITS["hand_placed"] else ["hand_placed"]
    if "conserved" in row and abs(row["conserved"] - 1) > LIMITS["conserved"]:
        found.append("conserved")
    if "cosine" not in row:
        return found + (["the linter"] if row.get("findings") else [])
    if not row["cosine"] >= LIMITS["cosine"] or row["grade"] == "failed":
        found.append("cosine")
    if row["refusals"] is None:
        return [*found, "not built: TensorRT-RTX (extra trt-lint) is not installed"]
    return found + (["tensorrt_rtx"] if row["refusals"] else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="all", help="names with commas between, or all")
    parser.add_argument("--methods", default="all", help="names with commas between, or all")
    parser.add_argument("--threads", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each (default 5), after one that is not kept")
    parser.add_argument("--clips", type=int, default=3, help="clips to certify on, three at most (default 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clips = arguments.clips
    networks = (*NETWORKS, *IN_TORCH) if arguments.networks == "all" else arguments.networks.split(",")
    methods = METHODS if arguments.methods == "all" else arguments.methods.split(",")
    if unfit := [name for name in networks if name in IN_TORCH and not set(methods) & set(IN_TORCH[name])]:
        parser.error(f"{unfit[0]} is measured with {', '.join(IN_TORCH[unfit[0]])}")
    try:
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    except FileNotFoundError:
        rows = {}
    failed = []
    for name in networks:
        for method in methods:
            if name in IN_TORCH and method not in IN_TORCH[name]:
                continue
            if name in IN_TORCH:
                row = in_torch(name, method, arguments.rounds)
            else:
                row = {**by_hand(name, method), **compiled(name, method, arguments.threads, arguments.rounds, clips)}
            found = machine(())
            row |= {key: found[key] for key in ("processor", "commit", "measured")}
            row["load_average"] = os.getloadavg()[0]
            rows.setdefault(name, {})[method] = row
            result = {
                "command": "python benchmarks/networks.py",
                "machine": machine(PACKAGES),
                "models": f"random weights, {CLASSES} classes",
                "limits": LIMITS,
                "rows": rows,
            }
            write_json(arguments.out, result)
            arrives = f"{row['conserved']:.6f}" if "conserved" in row else "-"
            cosine = f"{row['cosine']:.8f}" if "cosine" in row else "-"
            by_rules = f"{row['hand_placed']:.1e}" if "hand_placed" in row else "-"
            ratios = "  ".join(f"{runner} {ratio:.2f}" for runner, ratio in row["over_forward"].items())
            print(
                f"{name:<13} {method:<22} by hand {by_rules:<8}  arrives {arrives:<8}  "
                f"cosine {cosine:<10}  builds: {built(row):<3}  ÷ forward: {ratios}",
                flush=True,
            )
            failed += [f"{name} {method} ({fault})" for fault in faults(row)]
    if failed:
        raise SystemExit(f"outside the limits: {', '.join(failed)}")


if __name__ == "__main__":
    main()
