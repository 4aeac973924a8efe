"""Artifacts in ONNX Runtime. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.errors import InputError
from selrel_zennit.text import close_names

from ..artifact.format import OUTPUTS, Artifact, read_artifact
from ..precisions import check_runs
from .base import Clip, Outputs, Runner, processor
from .driver import ordinal_of

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
# Where the memory of a provider's tensors lies; of all others, in the processor's.
_MEMORY = {
    _CUDA: "cuda",
    "TensorrtExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
}
_OPTIONS = ("provider", "threads", "device", "tf32")
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class OnnxRuntimeRunner(Runner):
    """Runs an artifact by one execution provider of ONNX Runtime, and never silently by another.

    Where the provider has memory of its own, inputs and outputs lie there, allocated when the runner opens. Of a split
    artifact the activations stay where the provider computes: the two parts share their memory.
    """

    name = "onnxruntime"

    def __init__(
        self,
        artifact: Artifact,
        provider: str = _CPU,
        threads: int = 0,
        device: str | int | None = None,
        tf32: bool = False,
    ) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        check_runs(self.name, artifact.precision, cuda=provider == _CUDA)
        if provider != _CUDA and (device is not None or tf32):
            raise InputError(f"device and tf32 are options of {_CUDA}: give it as the provider")
        self._ordinal = 0 if device is None else ordinal_of(device)
        available = onnxruntime.get_available_providers()
        if provider not in available:
            near = close_names(provider, available)
            raise InputError(
                f"this ONNX Runtime has no {provider}{near}; it has {', '.join(available)}; "
                "install the onnxruntime package that brings it"
            )
        # ONNX Runtime's own default would round the inputs of convolutions to 10 bits.
        settings = {"device_id": str(self._ordinal), "use_tf32": str(int(tf32))} if provider == _CUDA else {}
        self._sessions: dict[str, Any] = {
            part: _session(path, provider, settings, threads) for part, path in artifact.parts.items()
        }
        where = f"{provider.removesuffix('ExecutionProvider')} device {self._ordinal}"
        super().__init__(
            artifact.clip_shape,
            artifact.num_classes,
            device=processor() if provider == _CPU else where,
            provider=f"{provider}, TF32" if tf32 else provider,
            precision=artifact.precision,
            frames_shape=artifact.frames_shape,
        )
        self.artifact, self.split = artifact, artifact.split
        self._bindings: dict[str, Any] = {}
        self._values: dict[str, Any] = {}
        memory = _MEMORY.get(provider)
        if self.split or memory:
            self._bind(memory or "cpu")

    @classmethod
    def open(cls, source: Any, **options: Any) -> OnnxRuntimeRunner:
        """Return a runner for an artifact; options: ``provider``, ``threads`` (0: as many as there are cores).

        With CUDAExecutionProvider also ``device`` ("cuda", "cuda:N") and ``tf32``: float32 rounded to 10 bits first.
        """
        if not isinstance(source, str | Path):
            raise InputError("the onnxruntime runner takes an artifact: export the graph first, or use eager")
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise InputError(f"the onnxruntime runner has no option {unknown[0]!r}; there are {', '.join(_OPTIONS)}")
        return cls(read_artifact(source), **options)

    def run(self, clip: Clip, target: npt.NDArray[np.int64]) -> Outputs:
        """Return the artifact's outputs."""
        if self._bindings:
            self._give(self.artifact.input_name, clip)
            return self._bound("explanation", target, OUTPUTS)
        inputs = {self.artifact.input_name: clip, "target": target}
        outputs: Outputs = self._sessions["explanation"].run(list(OUTPUTS), inputs)
        return outputs

    def run_forward(self, clip: Clip) -> npt.NDArray[Any]:
        """Return the logits; the activations stay in the runtime."""
        self._give(self.artifact.input_name, clip)
        self._sessions["forward"].run_with_iobinding(self._bindings["forward"])
        return np.array(self._values["logits"].numpy())

    def run_explain(self, target: npt.NDArray[np.int64]) -> Outputs:
        """Return the other outputs of the clip that was forwarded last."""
        return self._bound("explain", target, OUTPUTS[1:])

    def close(self) -> None:
        """Free the sessions, and what lies in their memory."""
        super().close()
        self._bindings, self._values, self._sessions = {}, {}, {}

    def _bind(self, memory: str) -> None:
        """Give every input and output its memory, in which one part reads what the other writes."""
        import onnxruntime

        try:
            for part, session in self._sessions.items():
                binding = self._bindings[part] = session.io_binding()
                for value in (*session.get_inputs(), *session.get_outputs()):
                    if value.name not in self._values:
                        self._values[value.name] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                            value.shape, _TYPES[value.type], memory, self._ordinal
                        )
                for value in session.get_inputs():
                    binding.bind_ortvalue_input(value.name, self._values[value.name])
                for value in session.get_outputs():
                    binding.bind_ortvalue_output(value.name, self._values[value.name])
        except RuntimeError as error:  # of the runtime's allocator
            first = str(error).strip().splitlines()[0]
            raise InputError(
                f"{self.provider} has no memory for {self.artifact.path.name} ({first}): end what else uses the "
                "device, or export a smaller batch"
            ) from None

    def _give(self, name: str, value: npt.NDArray[Any]) -> None:
        self._values[name].update_inplace(value)

    def _bound(self, part: str, target: npt.NDArray[np.int64], names: Sequence[str]) -> Outputs:
        self._give("target", target)
        self._sessions[part].run_with_iobinding(self._bindings[part])
        # Copies: in the processor's memory these are what the next call writes into.
        return [np.array(self._values[name].numpy()) for name in names]


def _session(path: Path, provider: str, settings: dict[str, str], threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if provider != _CPU:
        # Otherwise what the provider cannot run goes to the CPU without a word.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[(provider, settings)])
    except Exception as error:  # the runtime's own types, one per fault
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{path} does not run with {provider} ({first}): try another provider") from None
    used = session.get_providers()[0]
    if used != provider:
        raise InputError(f"{provider} did not load, ONNX Runtime fell back to {used}: check its libraries")
    return session
