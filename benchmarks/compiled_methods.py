"""Every compilable method, exported: is it Zennit's explanation in ONNX Runtime, and does TensorRT build it?

    python benchmarks/compiled_methods.py [--models demo,c3d] [--methods all] [--threads 2]

C3D has full width and random weights, the embedded model its own. Each artifact (float32) is certified against Zennit
on three clips, real ones where SELREL_DATA names their folder, for the top class, the runner-up and the last class.
TensorRT-RTX builds it without a GPU; the plan's bytes are compared with those of the model's weights. Rows of models
and methods that are not asked for stay in the file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import PACKAGES, machine, write_json
from real_clips import certificate_clips, golden_clip

import selrel_zennit as sr
from selrel_deploy import compile_explanation, open_runner, read_artifact
from selrel_deploy.artifact import export
from selrel_deploy.parity.certify import certify
from selrel_deploy.parity.zennit_reference import zennit_reference
from selrel_deploy.runners.tensorrt import engine_lint
from selrel_zennit.attribution import METHODS

RESULTS = Path(__file__).parent / "results" / "compiled_methods.json"
MODELS = {"demo": {}, "c3d": {"weights": "random", "num_classes": 101}}
# Forward, z⁺ and flipped z⁺ weights of the convolutions, two copies of the linear layers: 2.35 in C3D.
MOST_PLAN = {"dtd": 2.4}


def row(model: Any, method: str, threads: int) -> dict[str, Any]:
    """Return what is known of one method on one model."""
    start = time.perf_counter()
    attributor = sr.build_method(method, model)
    graph = compile_explanation(attributor, torch.zeros(1, *model.spec.shape))
    compiled = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = export(graph, Path(folder) / f"{method}.onnx", clips=golden_clip(model.spec), external_data=True)
        exported = time.perf_counter()
        artifact = read_artifact(path)
        passes = [report._asdict() for report in graph.passes]
        del graph
        clips, names = certificate_clips(artifact, model.spec)
        with open_runner(path, "onnxruntime", threads=threads) as run, attributor:
            reference = zennit_reference(attributor, artifact)
            certificate = certify(run, reference, clips, artifact.selection)
        lint = engine_lint.build(path) if engine_lint.installed() else None
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    maps = [entry for entry in certificate.comparisons if entry.output == "relevance"]
    return {
        "grade": certificate.grade,
        "reasons": certificate.reasons,
        "norm_error": max(entry.norm_error for entry in maps),
        "cosine": min(entry.cosine for entry in maps),
        "mask_iou": min(case.mask_iou for case in certificate.cases),
        "clips": names,
        "convolutions": passes[-1]["convolutions"],
        "operations": passes[-1]["operations"],
        "constant_bytes": passes[-1]["constant_bytes"],
        "weight_bytes": weights,
        "plan_bytes": lint.plan_bytes.get("explanation") if lint else None,
        "plan_over_weights": lint.plan_bytes["explanation"] / weights if lint and lint.plan_bytes else None,
        "refusals": [str(refusal) for refusal in lint.refusals] if lint else None,
        "tensorrt_rtx": lint.version if lint else None,
        "seconds": {"compile": compiled - start, "export": exported - compiled},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="names with commas between (default demo,c3d)")
    parser.add_argument("--methods", default="all", help="names with commas between, or all")
    parser.add_argument("--threads", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    compilable = [name for name, entry in METHODS.items() if entry.compilable]
    methods = compilable if arguments.methods == "all" else arguments.methods.split(",")
    try:
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    except FileNotFoundError:
        rows = {}
    failed = []
    for name in arguments.models.split(","):
        model = sr.load_model(name, **MODELS[name])
        for method in methods:
            made = rows.setdefault(name, {})[method] = {**row(model, method, arguments.threads), **_when()}
            result = {
                "command": "python benchmarks/compiled_methods.py",
                "machine": machine(PACKAGES),
                "models": {"demo": "embedded weights", "c3d": "random weights, 101 classes"},
                "runtime": "onnxruntime, CPUExecutionProvider, fp32",
                "limits": {"plan_over_weights": MOST_PLAN},
                "rows": rows,
            }
            write_json(arguments.out, result)
            plan = f"plan {made['plan_over_weights']:.2f} × weights" if made["plan_over_weights"] else "no plan"
            print(
                f"{name:<5} {method:<22} {made['grade']:<12} error {made['norm_error']:.1e}  "
                f"IoU {made['mask_iou']:.4f}  {made['convolutions']:3d} convolutions  {plan}",
                flush=True,
            )
            over = name == "c3d" and (made["plan_over_weights"] or 0) > MOST_PLAN.get(method, float("inf"))
            if made["grade"] == "failed" or made["refusals"] or over:
                failed.append(f"{name} {method}")
    if failed:
        raise SystemExit(f"not certified, not built or too large: {', '.join(failed)}")


def _when() -> dict[str, str]:
    return {"measured": machine(())["measured"]}


if __name__ == "__main__":
    main()
