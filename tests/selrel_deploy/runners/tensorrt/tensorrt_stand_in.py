"""A stand-in for TensorRT, whose engines are ONNX Runtime on the memory of gpu_stand_in.py. No engine runs here."""

from __future__ import annotations

import importlib.machinery
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from .gpu_stand_in import STREAMS, view


class _Enum(int):
    name = ""


def _enum(**members: int) -> Any:
    made = {}
    for name, value in members.items():
        made[name] = _Enum(value)
        made[name].name = name
    return types.SimpleNamespace(**made)


_KINDS = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32", "uint8": "UINT8", "bool": "BOOL"}


class ILogger:
    Severity = _enum(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class ITensor:
    def __init__(self, name: str) -> None:
        self.name = name


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.made_with = flags
        self._file = ""
        self._outputs: list[ITensor] = []

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]

    def unmark_output(self, tensor: ITensor) -> None:
        self._outputs.remove(tensor)


class ParserError:
    def node(self) -> int:
        return 3

    def desc(self) -> str:
        return "no importer\nfor it"


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network

    def parse_from_file(self, model: str) -> bool:
        if "refused" in model:
            return False
        self._network._file = model
        self._network._outputs = [
            ITensor(value.name) for value in onnx.load(model, load_external_data=False).graph.output
        ]
        return True

    def get_error(self, index: int) -> ParserError:
        return ParserError()


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> bytes:
        return self._content + b"measured "


class IBuilderConfig:
    def __init__(self) -> None:
        self.set = {"TF32"}
        self._cache: ITimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        self.set.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.set.discard(flag.name)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return not cache._content.startswith(b"of another device")

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class ICudaEngine:
    def __init__(self, said: dict[str, Any], trt: Any) -> None:
        self._trt, self._outputs = trt, said["outputs"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(said["file"], options, providers=["CPUExecutionProvider"])
        sides = (self._session.get_inputs(), self._session.get_outputs())
        numpy_types = {"tensor(float)": "float32", "tensor(bool)": "bool"}
        self._tensors = {
            value.name: (value.shape, numpy_types.get(value.type, value.type[7:-1]))
            for side in sides
            for value in side
            if side is sides[0] or value.name in self._outputs
        }
        self._inputs = [value.name for value in sides[0]]
        for name, (shape, kind) in self._tensors.items():
            if kind == "int64" and not trt.has_int64:
                self._tensors[name] = (shape, "int32")

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name][0])

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self._trt.DataType, _KINDS[self._tensors[name][1]])

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in self._engine._tensors
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self._addresses.keys() == self._engine._tensors.keys()
        STREAMS[stream_handle].put(self._compute)
        return True

    def _compute(self) -> None:
        arrays = {name: view(self._addresses[name], *self._engine._tensors[name]) for name in self._engine._tensors}
        given = {value.name: value.type for value in self._engine._session.get_inputs()}
        inputs = {
            name: arrays[name].astype(np.int64) if "int64" in kind else arrays[name] for name, kind in given.items()
        }
        outputs = self._engine._outputs
        for name, value in zip(outputs, self._engine._session.run(outputs, inputs), strict=True):
            arrays[name][...] = value


def tensorrt(version: str = "10.3.0") -> Any:
    """Return a stand-in for the module tensorrt; ``builds`` notes what was built, with which flags and timings."""
    major = int(version.partition(".")[0])
    trt: Any = types.ModuleType("tensorrt")
    trt.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    trt.__version__, trt.builds, trt.has_int64 = version, [], major >= 10
    trt.broken = ""
    trt.DataType = _enum(FLOAT=0, HALF=1, INT8=2, INT32=3, BOOL=4, UINT8=5, INT64=8)
    trt.NetworkDefinitionCreationFlag = _enum(EXPLICIT_BATCH=0) if major < 10 else _enum(STRONGLY_TYPED=1)
    trt.BuilderFlag = _enum(FP16=0, INT8=1, TF32=7) if major < 11 else _enum(TF32=7)
    trt.ILogger, trt.OnnxParser = ILogger, OnnxParser

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            self._log = logger

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            return INetworkDefinition(flags)

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
            if trt.broken == "build":
                self._log.log(ILogger.Severity.ERROR, "[memory.cpp] Error Code 1: Cuda Runtime (out of\nmemory)")
                return None
            outputs = [tensor.name for tensor in network._outputs]
            assert config._cache is not None
            note = {
                "file": Path(network._file).name,
                "outputs": outputs,
                "network": network.made_with,
                "flags": sorted(config.set),
                "timings": config._cache._content.decode(),
            }
            trt.builds.append(note)
            return json.dumps({"file": network._file, "outputs": outputs, "version": version}).encode()

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            self._log = logger
            if trt.broken == "driver":
                logger.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            try:
                said = json.loads(serialized_engine)
            except ValueError:
                said = {"version": "none"}
            if said["version"] != version:
                self._log.log(ILogger.Severity.ERROR, "the engine plan file is of another version")
                return None
            return ICudaEngine(said, trt)

    trt.Builder, trt.Runtime = Builder, Runtime
    return trt


def tensorrt_classes() -> list[type]:
    """Return every class whose methods the runner calls."""
    trt = tensorrt()
    fixed = [ILogger, ITensor, INetworkDefinition, ParserError, OnnxParser, ITimingCache, IBuilderConfig]
    return [*fixed, ICudaEngine, IExecutionContext, trt.Builder, trt.Runtime]
