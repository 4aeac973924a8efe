"""Artifacts in ONNX Runtime. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.errors import InputError
from selrel_zennit.text import close_names

from ..artifact import OUTPUTS, Artifact, read_artifact
from .base import Clip, Runner, processor

_CPU = "CPUExecutionProvider"


class OnnxRuntimeRunner(Runner):
    """Runs an artifact by one execution provider of ONNX Runtime, and never silently by another."""

    name = "onnxruntime"

    def __init__(self, artifact: Artifact, provider: str = _CPU, threads: int = 0) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        available = onnxruntime.get_available_providers()
        if provider not in available:
            near = close_names(provider, available)
            raise InputError(
                f"this ONNX Runtime has no {provider}{near}; it has {', '.join(available)}; "
                "install the onnxruntime package that brings it"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if provider != _CPU:
            # Otherwise what the provider cannot run goes to the CPU without a word.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            self._session: Any = onnxruntime.InferenceSession(str(artifact.path), options, providers=[provider])
        except Exception as error:  # the runtime's own types, one per fault
            first = str(error).strip().splitlines()[0]
            raise InputError(f"{artifact.path} does not run with {provider} ({first}): try another provider") from None
        used = self._session.get_providers()[0]
        if used != provider:
            raise InputError(f"{provider} did not load, ONNX Runtime fell back to {used}: check its libraries")
        device = processor() if used == _CPU else f"{used.removesuffix('ExecutionProvider')} device 0"
        super().__init__(
            artifact.clip_shape, artifact.num_classes, device=device, provider=used, precision=artifact.precision
        )
        self.artifact = artifact

    @classmethod
    def open(cls, source: Any, **options: Any) -> OnnxRuntimeRunner:
        """Return a runner for an artifact; options: ``provider``, ``threads`` (0: as many as there are cores)."""
        if not isinstance(source, str | Path):
            raise InputError("the onnxruntime runner takes an artifact: export the graph first, or use eager")
        unknown = sorted(set(options) - {"provider", "threads"})
        if unknown:
            raise InputError(f"the onnxruntime runner has no option {unknown[0]!r}; there are provider, threads")
        return cls(read_artifact(source), **options)

    def run(self, clip: Clip, target: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[Any]]:
        """Return the artifact's outputs."""
        outputs: list[npt.NDArray[Any]] = self._session.run(list(OUTPUTS), {"clip": clip, "target": target})
        return outputs

    def close(self) -> None:
        """Free the session."""
        super().close()
        self._session = None
