"""TensorRT's engine of an ONNX file: built where it runs, kept in the user's cache. One code for 8.6, 10 and 11.

What differs between versions is probed by name; only documented names of the named-tensor API are used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import warnings
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selrel_zennit.errors import InputError
from selrel_zennit.files import atomic_path

from .cuda_memory import out_of_memory, too_little_memory

# By preference; the last is TensorRT-RTX without its metapackage.
MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
PLANS = (".plan", ".engine", ".trt")

_WEAK = "EXPLICIT_BATCH"  # what a network without STRONGLY_TYPED is made with


@dataclass(frozen=True)
class EngineKey:
    """All that an engine depends on: another artifact, TensorRT, GPU or setting never gets it from the cache.

    artifact  its hash, over all of its files
    part      role of the ONNX file in it
    runtime   TensorRT's module and version
    gpu       name and compute capability
    tf32      whether float32 products may be TF32
    dropped   outputs that the engine does not compute
    """

    artifact: str
    part: str
    runtime: str
    gpu: str
    tf32: bool
    dropped: tuple[str, ...]

    @property
    def plan(self) -> Path:
        """The file of the engine."""
        digest = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]
        return (
            cache_folder() / f"{self.artifact[:12]}-{self.part}-{_plain(self.runtime)}-{_plain(self.gpu)}-{digest}.plan"
        )

    @property
    def timings(self) -> Path:
        """The file of what was measured while building, which all engines of this TensorRT and GPU share."""
        return cache_folder() / f"timings-{_plain(self.runtime)}-{_plain(self.gpu)}.cache"


def cache_folder() -> Path:
    """Return the folder that engines are kept in: SELREL_ENGINE_CACHE, or one in the user's cache."""
    if chosen := os.environ.get("SELREL_ENGINE_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "selrel_deploy" / "tensorrt"


def module_name() -> str:
    """Return the name of the TensorRT that is installed. Raises ModuleNotFoundError; nothing is loaded."""
    for name in MODULES:
        try:
            if importlib.util.find_spec(name) is not None:
                return name
        except (ModuleNotFoundError, ValueError):
            continue
    raise ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt")


def make_log(trt: Any) -> Any:
    """Return a logger that prints nothing and holds the errors in ``said``; it must outlive what it is given to."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.said.append(" ".join(message.split()))

    return Log()


def load_engine(trt: Any, log: Any, runtime: Any, path: Path, key: EngineKey, precision: str) -> Any:
    """Return the engine of an ONNX file: from the cache, or built (minutes, on a small device) and kept there.

    A plan in the cache that TensorRT does not take is built anew. A cache that cannot be written costs time and nothing
    else. Raises InputError where the file is refused, or memory is short.
    """
    kept = _read(key.plan)
    engine = runtime.deserialize_cuda_engine(kept) if kept else None
    if engine is not None:
        return engine
    log.said.clear()
    plan, timings = build_plan(
        trt, log, path, precision, tf32=key.tf32, dropped=key.dropped, timings=_read(key.timings)
    )
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise InputError(f"TensorRT does not take the engine that it built of {path.name} {reason(log, path)}")
    _keep(key.plan, plan)
    if timings:
        _keep(key.timings, timings)
    return engine


def build_plan(
    trt: Any,
    log: Any,
    path: Path,
    precision: str,
    *,
    tf32: bool = False,
    dropped: Collection[str] = (),
    timings: bytes = b"",
) -> tuple[bytes, bytes]:
    """Return an engine as bytes, and what was measured while building it (``timings``, to give to the next build).

    ``dropped`` are outputs that it need not compute. Raises InputError with the first thing that TensorRT refuses.
    """
    builder = trt.Builder(log)
    flags = _network_flags(trt, precision)
    network = builder.create_network(sum(1 << int(flag) for flag in flags.values()))
    parser = trt.OnnxParser(network, log)
    # By its path, so that weights beside it are found.
    if not parser.parse_from_file(str(path)):
        error = parser.get_error(0)
        said = f"node {error.node()}: {' '.join(error.desc().split())}"
        raise InputError(
            f"TensorRT {trt.__version__} does not take {path.name} ({said}): see what else it refuses with "
            "`selrel export --lint`, or use onnxruntime"
        )
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for tensor in outputs:
        if tensor.name in dropped:
            network.unmark_output(tensor)
    config = builder.create_builder_config()
    # On by default: convolutions would round their inputs to 10 bits.
    (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    if _WEAK in flags and "int8" in precision:
        config.set_flag(trt.BuilderFlag.INT8)
    with warnings.catch_warnings():
        # TensorRT-RTX measures on the device instead, and says so.
        warnings.simplefilter("ignore", DeprecationWarning)
        cache = config.create_timing_cache(timings) or config.create_timing_cache(b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise InputError(f"TensorRT {trt.__version__} builds no engine of {path.name} {reason(log, path)}")
        measured = config.get_timing_cache()
        return bytes(memoryview(plan)), bytes(memoryview(measured.serialize())) if measured is not None else b""


def reason(log: Any, path: Path) -> str:
    """Return why TensorRT gave nothing, and what to do, to end a sentence with."""
    if any(map(out_of_memory, log.said)):
        return f"because {too_little_memory(path.name)}"
    return f"({log.said[0] if log.said else 'it said nothing'}): use another TensorRT, or onnxruntime"


def _network_flags(trt: Any, precision: str) -> dict[str, Any]:
    """Return the network's flags: types are those of the file; 8.6 knows no such thing, and wants another flag."""
    known = trt.NetworkDefinitionCreationFlag
    for name in ("STRONGLY_TYPED", _WEAK):
        if hasattr(known, name):
            break
    else:
        return {}
    if name == _WEAK and "16" in precision:
        raise InputError(
            f"TensorRT {trt.__version__} cannot be told which layers are fp16: export fp32 or fp32+int8, or use "
            "TensorRT 10 or later"
        )
    return {name: getattr(known, name)}


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _keep(path: Path, content: bytes) -> None:
    try:
        with atomic_path(path) as partial:
            partial.write_bytes(content)
    except (OSError, InputError):
        pass
