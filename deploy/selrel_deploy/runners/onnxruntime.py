"""Artifacts in ONNX Runtime. Without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.errors import InputError
from selrel_zennit.text import close_names

from ..artifact import OUTPUTS, Artifact, read_artifact
from ..precisions import check_runs
from .base import Clip, Outputs, Runner, processor

_CPU = "CPUExecutionProvider"
# Where the memory of a provider's tensors lies; of all others, in the processor's.
_MEMORY = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
}
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

    Of a split artifact the activations stay where the provider computes: the two parts share their memory.
    """

    name = "onnxruntime"

    def __init__(self, artifact: Artifact, provider: str = _CPU, threads: int = 0) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        check_runs(self.name, artifact.precision)
        available = onnxruntime.get_available_providers()
        if provider not in available:
            near = close_names(provider, available)
            raise InputError(
                f"this ONNX Runtime has no {provider}{near}; it has {', '.join(available)}; "
                "install the onnxruntime package that brings it"
            )
        self._sessions: dict[str, Any] = {
            part: _session(path, provider, threads) for part, path in artifact.parts.items()
        }
        device = processor() if provider == _CPU else f"{provider.removesuffix('ExecutionProvider')} device 0"
        super().__init__(
            artifact.clip_shape,
            artifact.num_classes,
            device=device,
            provider=provider,
            precision=artifact.precision,
            frames_shape=artifact.frames_shape,
        )
        self.artifact, self.split = artifact, artifact.split
        self._bindings: dict[str, _Binding] = {}
        self._shared: dict[str, Any] = {}
        self._clip: Clip | None = None
        if self.split:
            self._join(_MEMORY.get(provider, "cpu"))

    @classmethod
    def open(cls, source: Any, **options: Any) -> OnnxRuntimeRunner:
        """Return a runner for an artifact; options: ``provider``, ``threads`` (0: as many as there are cores)."""
        if not isinstance(source, str | Path):
            raise InputError("the onnxruntime runner takes an artifact: export the graph first, or use eager")
        unknown = sorted(set(options) - {"provider", "threads"})
        if unknown:
            raise InputError(f"the onnxruntime runner has no option {unknown[0]!r}; there are provider, threads")
        return cls(read_artifact(source), **options)

    def run(self, clip: Clip, target: npt.NDArray[np.int64]) -> Outputs:
        """Return the artifact's outputs."""
        inputs = {self.artifact.input_name: clip, "target": target}
        outputs: Outputs = self._sessions["explanation"].run(list(OUTPUTS), inputs)
        return outputs

    def run_forward(self, clip: Clip) -> npt.NDArray[Any]:
        """Return the logits; the activations stay in the runtime."""
        for binding in self._bindings.values():
            if self.artifact.input_name in binding.takes:
                binding.io.bind_cpu_input(self.artifact.input_name, clip)
        # The runtime reads from the array itself.
        self._clip = clip
        self._sessions["forward"].run_with_iobinding(self._bindings["forward"].io)
        logits: npt.NDArray[Any] = self._shared["logits"].numpy()
        return logits

    def run_explain(self, target: npt.NDArray[np.int64]) -> Outputs:
        """Return the other outputs of the clip that was forwarded last."""
        binding = self._bindings["explain"]
        binding.io.bind_cpu_input("target", target)
        self._sessions["explain"].run_with_iobinding(binding.io)
        outputs: Outputs = binding.io.copy_outputs_to_cpu()
        return outputs

    def close(self) -> None:
        """Free the sessions, and what lies in their memory."""
        super().close()
        self._bindings, self._shared, self._sessions = {}, {}, {}
        self._clip = None

    def _join(self, memory: str) -> None:
        """Let the second part read the activations where the first writes them."""
        import onnxruntime

        self._bindings = {part: _Binding(session) for part, session in self._sessions.items()}
        for output in self._sessions["forward"].get_outputs():
            value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(output.shape, _TYPES[output.type], memory, 0)
            self._bindings["forward"].io.bind_ortvalue_output(output.name, value)
            if output.name in self._bindings["explain"].takes:
                self._bindings["explain"].io.bind_ortvalue_input(output.name, value)
            self._shared[output.name] = value
        for name in OUTPUTS[1:]:
            self._bindings["explain"].io.bind_output(name)


class _Binding:
    def __init__(self, session: Any) -> None:
        self.io = session.io_binding()
        self.takes = {value.name for value in session.get_inputs()}


def _session(path: Path, provider: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if provider != _CPU:
        # Otherwise what the provider cannot run goes to the CPU without a word.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # the runtime's own types, one per fault
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{path} does not run with {provider} ({first}): try another provider") from None
    used = session.get_providers()[0]
    if used != provider:
        raise InputError(f"{provider} did not load, ONNX Runtime fell back to {used}: check its libraries")
    return session
