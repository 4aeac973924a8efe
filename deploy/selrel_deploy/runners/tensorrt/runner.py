"""Artifacts in TensorRT, natively: its engine, device memory through cuda-core, one CUDA graph. Without torch.

Built, not run: no GPU has run it yet. README.md says what is checked without one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.errors import InputError

from ...artifact.format import OUTPUTS, Artifact, read_artifact
from ...precisions import check_runs
from ..base import Clip, Outputs, Runner
from ..driver import Gpu, gpu, ordinal_of
from .cuda_memory import CudaDevice, DeviceArray, on_cuda
from .engine import PLANS, EngineKey, load_engine, make_log, module_name, reason
from .motion_kernel import SELECTED, MotionKernel

SELECTIONS = ("graph", "kernel")

_OPTIONS = ("device", "selection", "tf32", "cuda_graph", "check")
_TYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT64": np.int64,
    "INT32": np.int32,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}
# By the forward pass. Rounding, with a pooling window here and there won by another voxel, stays below.
_MOST_ERROR = {"fp32": 0.02, "fp16": 0.5}
_MOST_ERROR_TF32 = 0.1


class TensorRtRunner(Runner):
    """Runs an artifact in TensorRT (8.6, 10, 11) or TensorRT-RTX, on one GPU.

    The engine is built when an artifact is first opened on a GPU, and kept. Clips go through page-locked memory; all
    memory is allocated when the runner opens. It opens only if it reproduces a golden case, unless ``check`` is false:
    for the parity certificate, which looks at all of them.

    ``stream`` is cuda-core's; ``upload``, ``compute`` and ``download`` are the stages of a call, put on that stream
    without waiting, for who measures them apart.
    """

    name = "tensorrt"

    def __init__(
        self,
        artifact: Artifact,
        device: str | int = "cuda",
        selection: str = "graph",
        tf32: bool = False,
        cuda_graph: bool = True,
        check: bool = True,
    ) -> None:
        check_runs(self.name, artifact.precision)
        if selection not in SELECTIONS:
            raise InputError(f"selection must be one of {', '.join(SELECTIONS)}, got {selection!r}")
        ordinal_of(device)
        module = module_name()
        trt = importlib.import_module(module)
        # Before any object of TensorRT is made: without a driver the first one ends the process.
        where = gpu(device, module, trt.__version__)
        self.artifact, self.split = artifact, artifact.split
        self._cuda = CudaDevice(where.ordinal)
        try:
            self._open(trt, module, where, selection, tf32, cuda_graph)
            said = {
                "CUDA graph": all(part.replayed for part in self._parts.values()),
                "selection kernel": selection == "kernel",
                "TF32": tf32,
            }
            super().__init__(
                artifact.clip_shape,
                artifact.num_classes,
                device=where.name,
                provider=", ".join([f"TensorRT {trt.__version__}", *(name for name, holds in said.items() if holds)]),
                precision=artifact.precision,
                frames_shape=artifact.frames_shape,
            )
            if check:
                self._check_golden(_MOST_ERROR_TF32 if tf32 else _MOST_ERROR["fp32"])
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, source: Any, **options: Any) -> TensorRtRunner:
        """Return a runner for an artifact; options: ``device`` ("cuda", "cuda:N"), ``selection``, ``tf32``,
        ``cuda_graph``, ``check``.

        ``selection="kernel"``: the project's own kernel selects on the same stream, in place of the engine.
        ``tf32=True``: products of float32 are rounded to 10 bits first.
        """
        if not isinstance(source, str | Path):
            raise InputError("the tensorrt runner takes an artifact: export the graph first, or use eager")
        if Path(source).suffix in PLANS:
            raise InputError(
                f"{source} is an engine, which belongs to one GPU and one version of TensorRT: give the NAME.onnx of "
                "its artifact, and the engine for this GPU is built and kept"
            )
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise InputError(f"the tensorrt runner has no option {unknown[0]!r}; there are {', '.join(_OPTIONS)}")
        return cls(read_artifact(source), **options)

    @property
    def stream(self) -> Any:
        """The stream that everything runs on, as cuda-core's Stream."""
        return self._cuda.stream

    def upload(self, clip: Clip, target: npt.NDArray[np.int64]) -> None:
        """Put the copies of a checked clip and target [B] on the stream."""
        for name, value in ((self.artifact.input_name, clip), ("target", target)):
            self._upload(name, value)

    def compute(self) -> None:
        """Put the explanation of what was uploaded on the stream."""
        for part in self._parts.values():
            part.launch()

    def download(self) -> None:
        """Put the copies of all outputs on the stream; after ``stream.sync()`` ``outputs`` has them."""
        for name in OUTPUTS:
            self._arrays[name].download()

    def outputs(self, names: tuple[str, ...] = OUTPUTS) -> Outputs:
        """Return what was downloaded last. Copies: the next call writes into the same memory."""
        types = {"explained_target": np.int64, "mask": np.bool_}
        # TensorRT 8.6 has no int64.
        return [self._arrays[name].host.astype(types.get(name, np.float32)) for name in names]

    def run(self, clip: Clip, target: npt.NDArray[np.int64]) -> Outputs:
        """Return the artifact's outputs."""
        with on_cuda(self.artifact.path.name):
            self._cuda.make_current()
            self.upload(clip, target)
            self.compute()
            self.download()
            self._cuda.wait()
        return self.outputs()

    def steps(self) -> dict[str, Callable[[Clip], None]]:
        """Return the parts of a call by name, each waiting for the device: for who times them apart.

        They take a checked clip, and go in their order. ``to_device`` copies it from pinned memory, ``back`` copies the
        outputs to pinned memory.
        """
        target = np.full(self.clip_shape[0], -1, np.int64)

        def step(work: Callable[[Clip], None]) -> Callable[[Clip], None]:
            def call(clip: Clip) -> None:
                with on_cuda(self.artifact.path.name):
                    self._cuda.make_current()
                    work(clip)
                    self._cuda.wait()

            return call

        return {
            "to_device": step(lambda clip: self.upload(clip, target)),
            "compute": step(lambda clip: self.compute()),
            "back": step(lambda clip: self.download()),
        }

    def run_forward(self, clip: Clip) -> npt.NDArray[Any]:
        """Return the logits; the activations stay on the device."""
        with on_cuda(self.artifact.path.name):
            self._cuda.make_current()
            self._upload(self.artifact.input_name, clip)
            self._parts["forward"].launch()
            self._arrays["logits"].download()
            self._cuda.wait()
        logits: npt.NDArray[Any] = self.outputs(("logits",))[0]
        return logits

    def run_explain(self, target: npt.NDArray[np.int64]) -> Outputs:
        """Return the other outputs of the clip that was forwarded last."""
        with on_cuda(self.artifact.path.name):
            self._cuda.make_current()
            self._upload("target", target)
            self._parts["explain"].launch()
            for name in OUTPUTS[1:]:
                self._arrays[name].download()
            self._cuda.wait()
        return self.outputs(OUTPUTS[1:])

    def close(self) -> None:
        """Free engines, graphs and memory."""
        if not getattr(self, "closed", False):
            self._cuda.make_current()
            self._cuda.wait()
            # Contexts and engines before their runtime and memory.
            self._parts: dict[str, _Part] = {}
            self._runtime: Any = None
            self._arrays: dict[str, DeviceArray] = {}
            self._cuda.close()
        super().close()

    def _open(self, trt: Any, module: str, where: Gpu, selection: str, tf32: bool, cuda_graph: bool) -> None:
        self._parts, self._arrays = {}, {}
        self._log = make_log(trt)
        with on_cuda(f"TensorRT's runtime on {where.name}"):
            self._runtime = trt.Runtime(self._log)
        dropped = SELECTED if selection == "kernel" else ()
        for role, path in self.artifact.parts.items():
            key = EngineKey(
                self.artifact.sha256,
                role,
                f"{module}-{trt.__version__}",
                f"{where.name}-sm{where.arch}",
                tf32,
                dropped,
            )
            engine = load_engine(trt, self._log, self._runtime, path, key, self.artifact.precision)
            self._parts[role] = _Part(self, trt, engine, path)
        if selection == "kernel":
            kernel = MotionKernel(self._cuda, self.artifact, self._arrays["relevance"])
            self._arrays |= kernel.arrays
            list(self._parts.values())[-1].then = kernel.launch
        missing = [name for name in (self.artifact.input_name, "target", *OUTPUTS) if name not in self._arrays]
        if missing:
            raise InputError(f"the engine of {self.artifact.path.name} has no {missing[0]}: export it again")
        batch = self.artifact.clip_shape[0]
        maps = (batch, *self.artifact.clip_shape[2:])
        self._expect({self.artifact.input_name: self.artifact.input_shape, "target": (batch,)})
        self._expect({"logits": (batch, self.artifact.num_classes), "relevance": maps, "mask": maps})
        if cuda_graph:
            for part in self._parts.values():
                part.record()

    def _expect(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            if self._arrays[name].shape != shape:
                raise InputError(
                    f"the engine of {self.artifact.path.name} has {name} {self._arrays[name].shape}, the artifact "
                    f"{shape}: export it again"
                )

    def _upload(self, name: str, value: npt.NDArray[Any]) -> None:
        array = self._arrays[name]
        np.copyto(array.host, value, casting="unsafe")
        array.upload()

    def _check_golden(self, most: float) -> None:
        golden = self.artifact.golden()
        outputs = self._outputs(golden[self.artifact.input_name][0], golden["target"][0])
        self._logits = None  # what was looked at is no clip of the caller's
        expected = golden["relevance"][0]
        distance = np.linalg.norm(outputs[OUTPUTS.index("relevance")] - expected) / np.linalg.norm(expected)
        if not distance <= max(most, _MOST_ERROR[self.artifact.precision.partition("+")[0]]):
            raise InputError(
                f"TensorRT computes another explanation than {self.artifact.path} holds as golden (relevance differs "
                f"by {distance:.0%}): use another precision, or onnxruntime"
            )


class _Part:
    """An engine with its context; its tensors lie in ``runner._arrays`` by name, where parts share them."""

    def __init__(self, runner: TensorRtRunner, trt: Any, engine: Any, path: Path) -> None:
        self._cuda, self._log, self._path = runner._cuda, runner._log, path
        self._engine = engine
        self.then: Callable[[], None] = lambda: None
        self._replay: Callable[[], None] | None = None
        with on_cuda(f"the context of {path.name}"):
            self._context = engine.create_execution_context()
        if self._context is None:
            raise InputError(f"TensorRT makes no context for {path.name} {reason(self._log, path)}")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        exchanged = {runner.artifact.input_name, "target", *OUTPUTS}
        for name in names:
            shape, kind = tuple(engine.get_tensor_shape(name)), engine.get_tensor_dtype(name).name
            if kind not in _TYPES or min(shape, default=1) < 0:
                raise InputError(f"the engine of {path.name} has {name} as {kind} {shape}: export it again")
            array = runner._arrays.get(name)
            if array is None:
                array = runner._arrays[name] = self._cuda.array(shape, _TYPES[kind], host=name in exchanged)
            elif (array.shape, array.dtype) != (shape, np.dtype(_TYPES[kind])):
                raise InputError(f"the parts of {runner.artifact.path.name} do not fit in {name}: export them again")
            if not self._context.set_tensor_address(name, array.address):
                raise InputError(f"TensorRT does not take memory for {name} {reason(self._log, path)}")

    @property
    def replayed(self) -> bool:
        """Whether calls replay a CUDA graph."""
        return self._replay is not None

    def launch(self) -> None:
        """Put the engine, and what follows it, on the stream."""
        (self._replay or self._enqueue)()

    def record(self) -> None:
        """Capture what ``launch`` does in a CUDA graph, to be replayed by it from now on."""
        with on_cuda(f"the first call of {self._path.name}"):
            # TensorRT sets itself up in the first call; that cannot be captured.
            self._enqueue()
            self._cuda.wait()
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._cuda.handle):
            return
        with on_cuda(f"the CUDA graph of {self._path.name}; open it with cuda_graph=False"):
            self._replay = self._cuda.capture(self._enqueue)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.handle):
            raise InputError(f"TensorRT does not run {self._path.name} {reason(self._log, self._path)}")
        self.then()
