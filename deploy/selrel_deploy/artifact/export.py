"""export: an ExplanationGraph → an artifact: ONNX with its description and golden cases."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selrel_zennit.attribution import METHODS
from selrel_zennit.clips.cutting import frozen_frame
from selrel_zennit.clips.spec import ClipSpec
from selrel_zennit.errors import InputError
from selrel_zennit.files import sha256_file, staged_folder
from selrel_zennit.network.copying import own_copy
from selrel_zennit.network.same_network import difference
from selrel_zennit.selection.selections import CalibratedSelection

from ..compiler import ExplanationGraph
from ..precisions import split_precision
from .format import (
    INPUTS,
    OUTPUTS,
    SCHEMA,
    SPLIT,
    data_path,
    golden_path,
    manifest_path,
    part_paths,
    read_artifact,
    write_manifest,
)
from .frames_input import FramesToClip
from .onnx_file import OPSET, Replayed, constant_bytes, to_onnx, write_models
from .split import split_model

INFO = (
    "method",
    "options",
    "attributor",
    "composite",
    "model",
    "weights",
    "weights_sha256",
    "loaded_with",
    "clip_spec",
    "class_names",
    "warning",
    "layout",
    "unseen",
)
# The largest difference of a golden logit to the network's, as a share of the greatest; forward passes in low precision
# are approximations, and their own certificate says how good.
_SAME_LOGITS = {"fp32": 1e-4, "fp16": 2e-2}
# Protobuf holds 2 GiB; some of it is structure.
_LARGEST = 2_000_000_000


def export(
    graph: ExplanationGraph,
    path: str | Path,
    *,
    clips: torch.Tensor | None = None,
    info: dict[str, Any] | None = None,
    split: bool = False,
    input: str = "float",
    frame_size: tuple[int, int] | None = None,
    external_data: bool = False,
) -> Path:
    """Write ``path`` (NAME.onnx), NAME.json and NAME.golden.npz, all or none; return the path of the first.

    ``split`` writes NAME.forward.onnx and NAME.explain.onnx in place of NAME.onnx; they share their weights in
    NAME.data. ``external_data`` puts the weights there without a split; above 2 GB they always go there.
    ``input="uint8"`` makes an artifact that takes frames, uint8 [B,T,H,W,3] RGB of ``frame_size`` (H, W), and resizes,
    crops and scales them as the model's ClipSpec says.

    The golden cases are ``clips`` (float32 [N,3,T,H,W], or uint8 frames [N,T,H,W,3]; N a multiple of the graph's
    batch; default: synthetic ones with flat regions and motion, three batches), explained by the graph for the top
    class, the runner-up and the last class, and frozen to their middle frame for the top class: what the parity
    certificate compares. Their logits are those of the network as it was given. ``info`` says what is unknown of a bare
    Zennit attributor: the fields of INFO.

    Raises InputError for a graph that is not float32 outside or holds bf16, for frames without a size or a ClipSpec,
    for clips of another shape, for unknown fields, and for a graph whose logits are not the network's: nothing is
    written then.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise InputError(f"{path} is no name for an artifact: give one that ends in .onnx")
    if path.name.endswith(tuple(SPLIT.values())):
        raise InputError(f"{path} is the name of a part of an artifact: give one without .{path.stem.split('.')[-1]}")
    if graph.dtype != torch.float32:
        raise InputError(f"an artifact is float32, this graph is {graph.dtype}: compile it with a float32 clip")
    if "bf16" in graph.precision:
        raise InputError(f"an ONNX file of opset {OPSET} has no bf16: export fp32, or run this graph by inductor")
    said = {**dict.fromkeys(INFO), **graph.info, **(info or {})}
    unknown = sorted(set(said) - set(INFO))
    if unknown:
        raise InputError(f"info has no field {unknown[0]!r}; there are {', '.join(INFO)}")
    if said["warning"] is None and said["method"] in METHODS:
        said["warning"] = METHODS[said["method"]].warning or None
    prepare = _prepare(graph, input, frame_size, said["clip_spec"])
    given = clips if clips is not None else _synthetic_clips(graph, prepare, said["clip_spec"])
    golden = _golden(graph, prepare, given)
    earlier = _earlier_files(path)
    with staged_folder(path.parent) as folder:
        staged = folder / path.name
        files, activations = _write_onnx(graph, prepare, staged, split, external_data)
        np.savez_compressed(golden_path(staged), **golden)  # type: ignore[arg-type]
        files.append(golden_path(staged))
        frames_shape = _input_shape(graph, prepare) if prepare is not None else None
        name = INPUTS[input]
        fields: dict[str, Any] = {
            "schema": f"{SCHEMA[0]}.{SCHEMA[1]}",
            "name": path.stem,
            "inputs": {
                name: "float32 [B,3,T,H,W]" if prepare is None else "uint8 [B,T,H,W,3], RGB",
                "target": "int64 [B], -1 is the top class",
            },
            "outputs": list(OUTPUTS),
            "split": split,
            "activations": activations,
            "input": input,
            "clip_shape": list(graph.clip_shape),
            "frames_shape": frames_shape,
            "num_classes": graph.num_classes,
            "precision": graph.precision,
            "frozen_frame": frozen_frame(graph.clip_shape[2]),
            "opset": OPSET,
            "selection": _selection(graph),
            "info": said,
            "passes": [report._asdict() for report in graph.passes],
            "versions": {
                name: importlib.metadata.version(name) for name in ("selrel-zennit", "torch", "zennit", "onnx")
            },
            "files": {file.name.removeprefix(path.stem): sha256_file(file) for file in files},
        }
        write_manifest(fields, manifest_path(staged))
    for file in earlier:
        # Of an artifact of another kind: beside this one's they would be taken for its own.
        if file.name.removeprefix(path.stem) not in fields["files"]:
            file.unlink(missing_ok=True)
    return path


def _prepare(
    graph: ExplanationGraph, input: str, frame_size: tuple[int, int] | None, spec: dict[str, Any] | None
) -> FramesToClip | None:
    """Return what makes clips of frames where the artifact takes frames."""
    if input not in INPUTS:
        raise InputError(f"no input {input!r}; there are {', '.join(INPUTS)}")
    if input == "float":
        if frame_size is not None:
            raise InputError("a frame size goes with the input uint8 alone")
        return None
    if frame_size is None or min(frame_size) < 1:
        raise InputError(f"the input uint8 needs the height and width of the frames, got {frame_size}")
    if spec is None:
        raise InputError("the input uint8 needs a ClipSpec: give info={'clip_spec': spec.to_dict()}")
    clip_spec = ClipSpec.from_dict(spec)
    if clip_spec.shape != graph.clip_shape[1:]:
        raise InputError(
            f"the ClipSpec makes clips {list(clip_spec.shape)}, the graph takes {list(graph.clip_shape[1:])}: "
            "compile it with a clip of the model's ClipSpec"
        )
    return FramesToClip(clip_spec, frame_size)


def _input_shape(graph: ExplanationGraph, prepare: FramesToClip | None) -> list[int]:
    if prepare is None:
        return list(graph.clip_shape)
    return [graph.clip_shape[0], graph.clip_shape[2], *prepare.frame_size, 3]


def _write_onnx(
    graph: ExplanationGraph, prepare: FramesToClip | None, path: Path, split: bool, external_data: bool
) -> tuple[list[Path], list[str]]:
    """Write the ONNX files and NAME.data; return them, and the names of the activations handed over."""
    example = torch.zeros(_input_shape(graph, prepare), dtype=torch.float32 if prepare is None else torch.uint8)
    target = torch.zeros(graph.clip_shape[0], dtype=torch.int64)
    names = [INPUTS["float" if prepare is None else "uint8"], "target"]
    module = graph.form("onnx", split=split)
    model = to_onnx(Replayed(module, prepare), (example, target), names, OUTPUTS)
    paths = part_paths(path, split)
    activations: list[str] = []
    if split:
        forward, explain, activations = split_model(model)
        models = {paths["forward"]: forward, paths["explain"]: explain}
    else:
        models = {paths["explanation"]: model}
    outside = split or external_data or constant_bytes(model) > _LARGEST
    data = data_path(path) if outside else None
    write_models(models, data)
    return [*models, *([data] if data is not None else [])], activations


def _earlier_files(path: Path) -> set[Path]:
    """Return the files of an undamaged artifact that has this name already."""
    try:
        return {path.with_name(name) for name in read_artifact(path).files}
    except InputError:
        return set()


def _selection(graph: ExplanationGraph) -> dict[str, Any]:
    """Return the arguments of select_motion, and alpha beside calibrated thresholds."""
    settings = graph.selection.settings
    said = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    return {**said, "alpha": graph.selection.alpha} if isinstance(graph.selection, CalibratedSelection) else said


def _golden(
    graph: ExplanationGraph, prepare: FramesToClip | None, clips: torch.Tensor
) -> dict[str, np.ndarray[Any, Any]]:
    shape, dtype = _input_shape(graph, prepare), torch.float32 if prepare is None else torch.uint8
    batch, classes, time = shape[0], graph.num_classes, 2 if prepare is None else 1
    if (
        clips.dtype != dtype
        or clips.ndim != 5
        or len(clips) == 0
        or len(clips) % batch
        or [*clips.shape[1:]] != shape[1:]
    ):
        raise InputError(
            f"golden clips must be {dtype} [N,{','.join(map(str, shape[1:]))}], N a multiple of {batch}, "
            f"got {clips.dtype} {list(clips.shape)}"
        )

    def explain(given: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
        clip = given if prepare is None else prepare(given)
        logits, *others = graph(clip, target)
        return _bare_logits(graph, clip, logits), *others

    cases: list[tuple[torch.Tensor, ...]] = []
    for clip in torch.split(clips, batch):
        top = torch.full((batch,), -1)
        first = explain(clip, top)
        runner_up = first[0].topk(min(2, classes)).indices[:, -1]
        cases.append((clip, top, *first))
        cases.extend(
            (clip, target, *explain(clip, target)) for target in (runner_up, torch.full_like(top, classes - 1))
        )
        frozen = clip.narrow(time, frozen_frame(clip.shape[time]), 1).expand_as(clip).contiguous()
        cases.append((frozen, first[1], *explain(frozen, first[1])))
    names = ("clip" if prepare is None else "frames", "target", *OUTPUTS)
    return {
        name: np.stack([value.numpy() for value in values])
        for name, values in zip(names, zip(*cases, strict=True), strict=True)
    }


def _bare_logits(graph: ExplanationGraph, clip: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the logits [B,K] of the network itself. Raises InputError where the graph's are not the same."""
    if graph.network is None:
        return logits
    bare = own_copy(graph.network)
    with torch.no_grad():
        expected: torch.Tensor = bare(clip)
    forward, _ = split_precision(graph.precision)
    reason = difference(expected, logits, _SAME_LOGITS[forward])
    if reason is not None:
        raise InputError(
            f"the compiled graph is of another network than the one given ({reason}), so it is not written: compile it "
            "anew if the network has changed since, and explain it in torch if it has not"
        )
    return expected.to(logits)


def _synthetic_clips(
    graph: ExplanationGraph, prepare: FramesToClip | None, spec: dict[str, Any] | None
) -> torch.Tensor:
    """Return three batches of clips as video is: a flat ground, texture, and a square that moves."""
    batch, channels, steps, height, width = graph.clip_shape
    if prepare is not None:
        height, width = prepare.frame_size
    count = 3 * batch
    rng = np.random.default_rng(0)
    pixels = np.full((count, steps, height, width, 3), 128, np.uint8)
    pixels[..., width // 2 :, :] = rng.integers(0, 256, (count, 1, height, width - width // 2, 3), dtype=np.uint8)
    side = max(min(height, width) // 4, 1)
    for index in range(count):
        y, x = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        for step in range(steps):
            left = (x + step * (1 + index)) % (width - side + 1)
            pixels[index, step, y : y + side, left : left + side] = (255, 64, 0)
    if prepare is not None:
        return torch.from_numpy(pixels)
    if spec is not None:
        return torch.from_numpy(ClipSpec.from_dict(spec).from_pixels(pixels))
    return torch.from_numpy(pixels).permute(0, 4, 1, 2, 3)[:, :channels].float() / 127.5 - 1
