"""export: an ExplanationGraph → an artifact, one ONNX file with its description and golden cases."""

from __future__ import annotations

import importlib.metadata
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selrel_zennit.clip import ClipSpec
from selrel_zennit.errors import InputError
from selrel_zennit.files import sha256_file, staged_folder

from .artifact import OUTPUTS, SCHEMA, golden_path, manifest_path, write_manifest
from .compiler import ExplanationGraph

OPSET = 18

_INFO = ("method", "options", "model", "weights", "weights_sha256", "clip_spec")
# Protobuf holds 2 GiB; some of it is structure.
_LARGEST = 2_000_000_000


def export(
    graph: ExplanationGraph,
    path: str | Path,
    *,
    clips: torch.Tensor | None = None,
    info: dict[str, Any] | None = None,
) -> Path:
    """Write ``path`` (NAME.onnx), NAME.json and NAME.golden.npz, all or none; return the path of the first.

    The golden cases are ``clips`` (float32 [N,3,T,H,W], N a multiple of the graph's batch; default: three synthetic
    ones with flat regions and motion), explained by the graph for the top class, the runner-up and the last class,
    and frozen to their first frame for the top class: what the parity certificate compares.
    ``info`` says what is unknown of a bare Zennit attributor: method, options, model, weights, weights_sha256,
    clip_spec.

    Raises InputError for a graph that is not float32 or is larger than an ONNX file can be, and for other fields.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise InputError(f"{path} is no name for an artifact: give one that ends in .onnx")
    if graph.dtype != torch.float32:
        raise InputError(f"an artifact is float32, this graph is {graph.dtype}: compile it with a float32 clip")
    said = {**dict.fromkeys(_INFO), **graph.info, **(info or {})}
    unknown = sorted(set(said) - set(_INFO))
    if unknown:
        raise InputError(f"info has no field {unknown[0]!r}; there are {', '.join(_INFO)}")
    size = sum(value.numel() * value.element_size() for value in graph.module.buffers())
    if size > _LARGEST:
        raise InputError(f"the graph holds {size / 1e9:.1f} GB of constants, an ONNX file 2: explain a smaller network")
    golden = _golden(graph, clips if clips is not None else _synthetic_clips(graph, said["clip_spec"]))
    with staged_folder(path.parent) as folder:
        staged = folder / path.name
        _write_onnx(graph, staged)
        np.savez_compressed(golden_path(staged), **golden)  # type: ignore[arg-type]
        fields = {
            "schema": f"{SCHEMA[0]}.{SCHEMA[1]}",
            "inputs": {"clip": "float32 [B,3,T,H,W]", "target": "int64 [B], -1 is the top class"},
            "outputs": list(OUTPUTS),
            "clip_shape": list(graph.clip_shape),
            "num_classes": graph.num_classes,
            "precision": graph.precision,
            "opset": OPSET,
            "selection": asdict(graph.selection),
            "info": said,
            "passes": [report._asdict() for report in graph.passes],
            "versions": {
                name: importlib.metadata.version(name) for name in ("selrel-zennit", "torch", "zennit", "onnx")
            },
            "onnx_sha256": sha256_file(staged),
            "golden_sha256": sha256_file(golden_path(staged)),
        }
        write_manifest(fields, manifest_path(staged))
    return path


def _write_onnx(graph: ExplanationGraph, path: Path) -> None:
    clip = torch.zeros(graph.clip_shape, dtype=graph.dtype)
    target = torch.zeros(graph.clip_shape[0], dtype=torch.int64)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.module,
            (clip, target),
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=["clip", "target"],
            output_names=list(OUTPUTS),
            external_data=False,
            verbose=False,
        )


def _golden(graph: ExplanationGraph, clips: torch.Tensor) -> dict[str, np.ndarray[Any, Any]]:
    batch, classes = graph.clip_shape[0], graph.num_classes
    if clips.ndim != 5 or len(clips) == 0 or len(clips) % batch or tuple(clips.shape[1:]) != graph.clip_shape[1:]:
        raise InputError(f"clips must be [N,{','.join(map(str, graph.clip_shape[1:]))}], N a multiple of {batch}")
    cases: list[tuple[torch.Tensor, ...]] = []
    for clip in torch.split(clips, batch):
        top = torch.full((batch,), -1)
        logits = graph(clip, top)[0]
        runner_up = logits.topk(min(2, classes)).indices[:, -1]
        for target in (top, runner_up, torch.full_like(top, classes - 1)):
            cases.append((clip, target, *graph(clip, target)))
        frozen = clip[:, :, :1].expand_as(clip).contiguous()
        cases.append((frozen, cases[-3][3], *graph(frozen, cases[-3][3])))
    return {
        name: np.stack([value.numpy() for value in values])
        for name, values in zip(("clip", "target", *OUTPUTS), zip(*cases, strict=True), strict=True)
    }


def _synthetic_clips(graph: ExplanationGraph, spec: dict[str, Any] | None) -> torch.Tensor:
    """Return three batches of clips as video is: a flat ground, texture, and a square that moves."""
    batch, channels, steps, height, width = graph.clip_shape
    rng = np.random.default_rng(0)
    pixels = np.full((3 * batch, steps, height, width, 3), 128, np.uint8)
    pixels[..., width // 2 :, :] = rng.integers(0, 256, (3 * batch, 1, height, width - width // 2, 3), dtype=np.uint8)
    side = max(min(height, width) // 4, 1)
    for index in range(3 * batch):
        y, x = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        for step in range(steps):
            left = (x + step * (1 + index)) % (width - side + 1)
            pixels[index, step, y : y + side, left : left + side] = (255, 64, 0)
    if spec is not None:
        return torch.from_numpy(ClipSpec.from_dict(spec).from_pixels(pixels))
    return torch.from_numpy(pixels).permute(0, 4, 1, 2, 3)[:, :channels].float() / 127.5 - 1
