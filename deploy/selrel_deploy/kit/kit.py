"""The edge kit: an artifact, and beside it what a person on the device needs to build, check and serve it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from selrel_zennit.errors import InputError
from selrel_zennit.files import check_folder, sha256_file, staged_folder

from ..artifact.format import Artifact, manifest_path, read_artifact
from ..precisions import RUNS

SUMS = "SHA256SUMS"
_PLAIN = ("requirements-edge.txt",)
_TEMPLATES = ("README.md", "run.py", "engine.sh", "golden.py", "compare.sh")
_TRITON_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
}
# Of the norm, logits and relevance, by the precision of the forward pass: a rounded activation flips winners of pools.
_MOST_ERROR = {"fp32": (1e-3, 1e-2), "fp16": (2e-2, 0.1)}
_ON_PROCESSOR = """## 1. Without a GPU, without torch

```bash
pip install --no-deps selrel-zennit==@VERSION@
pip install -r requirements-edge.txt
python run.py VIDEO
selrel run @NAME@.onnx VIDEO --out out  # pictures, a film, a report
pip install starlette uvicorn websockets && python run.py 0 --live  # a camera, on a page in the browser
selrel bench --artifact @NAME@.onnx --clips VIDEO
```

Where `cat /sys/kernel/mm/transparent_hugepage/enabled` says `[madvise]` and the C library is glibc from 2.35, `export
GLIBC_TUNABLES=glibc.malloc.hugetlb=1` asks for larger pages of memory, in which ONNX Runtime may be faster.
"""
_ON_GPU_ALONE = """## 1. Without torch

```bash
pip install --no-deps selrel-zennit==@VERSION@
pip install -r requirements-edge.txt
```

This artifact needs a GPU: it computes in @PRECISION@, and no runtime for processors does. One for those is exported
with `--precision fp32`.
"""
_ABOUT = {
    ".onnx": "the graph: logits, relevance, selection",
    ".forward.onnx": "the forward pass: logits, and the activations that the explanation needs",
    ".explain.onnx": "the explanation of a class, from those activations",
    ".data": "the weights of both graphs; keep the name",
    ".json": "what the artifact is: shapes, method, model, selection, hashes",
    ".golden.npz": "cases to check a device by: inputs, targets, and what came out where it was exported",
}


def write_kit(artifact: str | Path | Artifact, folder: str | Path) -> Path:
    """Write an artifact and all that goes with it to ``folder``, all files or none; return the folder.

    Beside the artifact's own files: ``requirements-edge.txt``; ``run.py``, which checks it against its golden cases and
    explains a video, without torch; ``golden/*.bin`` and ``engine.sh`` for trtexec; ``golden.py`` and ``compare.sh``
    for polygraphy (of an artifact in one part); ``triton/``, a model repository with warm-up; a README; SHA256SUMS.

    Raises InputError for a damaged artifact, and for a folder that holds the artifact itself or another one's kit.
    """
    read, folder = artifact if isinstance(artifact, Artifact) else read_artifact(artifact), Path(folder)
    check_kit_folder(read.path, folder)
    with staged_folder(folder) as staged:
        for name in (*read.files, manifest_path(read.path).name):
            shutil.copyfile(read.path.parent / name, staged / name)
        for name in _PLAIN:
            (staged / name).write_text(_text(name), encoding="utf-8")
        models = {role: _Model(path) for role, path in read.parts.items()}
        _write_golden(read, staged / "golden")
        for role, model in models.items():
            _write_triton(read, role, model, staged)
        values = _values(read, models)
        for name in _TEMPLATES:
            if name in ("golden.py", "compare.sh") and read.split:
                continue
            text = _text(f"{name}.in")
            for key, value in values.items():
                text = text.replace(f"@{key}@", value)
            (staged / name).write_text(text, encoding="utf-8")
            if name.endswith(".sh"):
                (staged / name).chmod(0o755)
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        # The large ones are copies, or links, of files whose hashes are known.
        known = {(staged / name).stat().st_ino: sha256 for name, sha256 in read.files.items()}
        sums = [
            f"{known.get(path.stat().st_ino) or sha256_file(path)}  {path.relative_to(staged).as_posix()}"
            for path in files
        ]
        (staged / SUMS).write_text("\n".join(sums) + "\n", encoding="utf-8")
    return folder


def check_kit_folder(artifact: str | Path, folder: str | Path) -> None:
    """Raise InputError where ``write_kit`` would refuse the folder: before long work, not after it."""
    name, folder = Path(artifact).name, Path(folder)
    if folder.resolve() == Path(artifact).parent.resolve():
        raise InputError(f"{folder} holds the artifact itself: give a folder of its own for the kit")
    others = sorted(path.name for path in folder.glob("*.json") if path.name != manifest_path(Path(name)).name)
    if others:
        raise InputError(f"{folder} holds the kit of another artifact ({others[0]}): give a new folder")
    check_folder(folder)


class _Model:
    """What goes into an ONNX file and comes out: (name, type, shape) each."""

    def __init__(self, path: Path) -> None:
        graph = onnx.load(path, load_external_data=False).graph
        self.inputs = [_tensor(value) for value in graph.input]
        self.outputs = [_tensor(value) for value in graph.output]


def _tensor(value: onnx.ValueInfoProto) -> tuple[str, str, list[int]]:
    kind = value.type.tensor_type
    return value.name, _TRITON_TYPES[kind.elem_type], [axis.dim_value for axis in kind.shape.dim]


def _text(name: str) -> str:
    return resources.files(__package__).joinpath("files").joinpath(name).read_text(encoding="utf-8")


def _first_case(artifact: Artifact) -> dict[str, Any]:
    golden = artifact.golden()
    return {name: np.ascontiguousarray(golden[name][0]) for name in (artifact.input_name, "target")}


def _write_golden(artifact: Artifact, folder: Path) -> None:
    folder.mkdir()
    for name, value in _first_case(artifact).items():
        value.tofile(folder / f"{name}.bin")


def _write_triton(artifact: Artifact, role: str, model: _Model, staged: Path) -> None:
    """Write the model of a part. Its ONNX file is the kit's own where the file system has hard links."""
    part = artifact.parts[role]
    name = triton_name(part)
    version = staged / "triton" / name / "1"
    version.mkdir(parents=True)
    _link(staged / part.name, version / "model.onnx")
    data = part.parent / f"{artifact.path.stem}.data"
    if data.name in artifact.files:
        # Runtimes take weights behind a hard link for an attack.
        shutil.copyfile(staged / data.name, version / data.name)
    warm = _first_case(artifact)
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        "# Shapes are those of the graph, the batch too.",
        "max_batch_size: 0",
    ]
    for kind, tensors in (("input", model.inputs), ("output", model.outputs)):
        for tensor, dtype, shape in tensors:
            lines.append(f'{kind} {{ name: "{tensor}" data_type: {dtype} dims: {shape} }}')
    lines += ["model_warmup {", '  name: "golden"', "  batch_size: 1"]
    for tensor, dtype, shape in model.inputs:
        source = f'input_data_file: "{tensor}"' if tensor in warm else "zero_data: true"
        lines.append(f'  inputs {{ key: "{tensor}" value {{ data_type: {dtype} dims: {shape} {source} }} }}')
        if tensor in warm:
            folder = version.parent / "warmup"
            folder.mkdir(exist_ok=True)
            _link(staged / "golden" / f"{tensor}.bin", folder / tensor)
    (version.parent / "config.pbtxt").write_text("\n".join([*lines, "}"]) + "\n", encoding="utf-8")


def triton_name(part: Path) -> str:
    """Return the name that Triton has for a part: that of the file, with dots turned into underscores."""
    return part.name.removesuffix(".onnx").replace(".", "_")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _values(artifact: Artifact, models: dict[str, _Model]) -> dict[str, str]:
    name, info = artifact.path.stem, artifact.info
    plans = [f"{part.name.removesuffix('.onnx')}.plan" for part in artifact.parts.values()]
    logits, relevance = _MOST_ERROR[artifact.precision.partition("+")[0]]
    compare = "" if artifact.split else "./compare.sh  # polygraphy: ONNX Runtime and TensorRT on all golden cases\n"
    # Eager and inductor run graphs, not artifacts.
    processors = [runner for runner in ("onnxruntime", "openvino") if artifact.precision in RUNS[runner]]
    runners = [*processors, "tensorrt"]
    triton = " and ".join(f"`{triton_name(part)}`" for part in artifact.parts.values())
    return {
        # Holds other values' names.
        "WITHOUT_GPU": _ON_PROCESSOR if "onnxruntime" in processors else _ON_GPU_ALONE,
        "RUNNERS": " or ".join(filter(None, [", ".join(runners[:-1]), runners[-1]])),
        "RUNNER": runners[0],
        "NAME": name,
        "METHOD": str(info["method"] or "an explanation"),
        "MODEL": str(info["model"] or "a network"),
        "PRECISION": artifact.precision,
        "INPUT": artifact.input_name,
        "INPUT_TYPE": "float32 in model units" if artifact.input == "float" else "uint8 frames, RGB",
        "INPUT_SHAPE": str(list(artifact.input_shape)),
        "TARGET_SHAPE": str([artifact.input_shape[0]]),
        "VERSION": importlib.metadata.version("selrel-zennit"),
        "LOGITS_ERROR": f"{logits:g}",
        "RELEVANCE_ERROR": f"{relevance:g}",
        "ENGINES": "\n".join(_engine(artifact, role, model) for role, model in models.items()),
        "PLANS": " and ".join(plans),
        "COMPARE": compare,
        "TRITON": f"Serves {triton} by ONNX Runtime, warmed up with a golden input.",
        "FILES": "\n".join(_files(artifact)),
    }


def _engine(artifact: Artifact, role: str, model: _Model) -> str:
    """Return the line of trtexec for a part. What the golden cases do not hold, it makes up."""
    part = artifact.parts[role]
    stem = part.name.removesuffix(".onnx")
    known = [f"{name}:golden/{name}.bin" for name, *_ in model.inputs if name in (artifact.input_name, "target")]
    return (
        f'"$trtexec" --onnx={part.name} --saveEngine={stem}.plan --timingCacheFile={artifact.path.stem}.timing \\\n'
        f'  --loadInputs={",".join(known)} --exportTimes={stem}.times.json "${{flags[@]}}" "${{time[@]}}" "$@"'
    )


def _files(artifact: Artifact) -> list[str]:
    names = [*artifact.files, manifest_path(artifact.path).name]
    rows = [(name, _ABOUT[name.removeprefix(artifact.path.stem)]) for name in names]
    rows += [
        ("requirements-edge.txt", "what a device installs"),
        ("run.py", "the golden check and a video, in Python"),
        ("golden/", "the first golden input, as trtexec reads it"),
        ("engine.sh", "builds and times TensorRT engines"),
    ]
    if not artifact.split:
        rows.append(("compare.sh, golden.py", "ONNX Runtime and TensorRT held against each other by polygraphy"))
    rows += [("triton/", "a model repository"), (SUMS, "hashes of all other files")]
    return [f"| {name} | {what} |" for name, what in rows]
