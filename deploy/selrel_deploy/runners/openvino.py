"""Artifacts in OpenVINO. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.errors import InputError

from ..artifact import OUTPUTS, Artifact, read_artifact
from .base import Clip, Runner

_HINT = "INFERENCE_PRECISION_HINT"
# Rounding, with a pooling window here and there won by another voxel, stays far below this.
_MOST_ERROR = 1e-2


class OpenVinoRunner(Runner):
    """Runs an artifact on a device of OpenVINO, in the precision of the artifact.

    On processors with bf16 arithmetic OpenVINO runs a float32 model in bf16 unless told otherwise, which ruins
    explanations of real clips. The precision is therefore set, and read back. And since some of its kernels lose the
    stabiliser of a division (2026.4 with one thread, for one), a runner opens only if it reproduces a golden case.
    """

    name = "openvino"

    def __init__(self, artifact: Artifact, device: str = "CPU", threads: int = 0) -> None:
        import openvino  # type: ignore[import-not-found, unused-ignore]

        core = openvino.Core()
        available = core.available_devices
        if device not in available:
            raise InputError(f"OpenVINO has no device {device}; it has {', '.join(available)}: install its driver")
        settings: dict[str, Any] = {_HINT: "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._model: Any = core.compile_model(str(artifact.path), device, settings)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1]
            raise InputError(f"{artifact.path} does not run in OpenVINO ({first}): try another runner") from None
        precision = self._model.get_property(_HINT).to_string()
        if precision != "f32":
            raise InputError(f"OpenVINO runs {artifact.path} in {precision}, not in f32: use another device or runner")
        used = list(self._model.get_property("EXECUTION_DEVICES"))
        if used != [device]:
            raise InputError(f"OpenVINO runs {artifact.path} on {', '.join(used)}, not on {device}: use another device")
        super().__init__(
            artifact.clip_shape,
            artifact.num_classes,
            device=core.get_property(device, "FULL_DEVICE_NAME"),
            provider=device,
            precision=artifact.precision,
        )
        self.artifact = artifact
        golden = artifact.golden()
        relevance = self.run(golden["clip"][0], golden["target"][0])[OUTPUTS.index("relevance")]
        distance = np.linalg.norm(relevance - golden["relevance"][0]) / np.linalg.norm(golden["relevance"][0])
        if not distance <= _MOST_ERROR:
            raise InputError(
                f"OpenVINO computes another explanation than {artifact.path} holds as golden (relevance differs by "
                f"{distance:.0%}): set another number of threads, or use onnxruntime"
            )

    @classmethod
    def open(cls, source: Any, **options: Any) -> OpenVinoRunner:
        """Return a runner for an artifact; options: ``device``, ``threads`` (0: as OpenVINO sees fit)."""
        if not isinstance(source, str | Path):
            raise InputError("the openvino runner takes an artifact: export the graph first, or use eager")
        unknown = sorted(set(options) - {"device", "threads"})
        if unknown:
            raise InputError(f"the openvino runner has no option {unknown[0]!r}; there are device, threads")
        return cls(read_artifact(source), **options)

    def run(self, clip: Clip, target: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[Any]]:
        """Return the artifact's outputs."""
        results = self._model([clip, target])
        # Copies: the next call writes into the same memory.
        return [np.array(results[name]) for name in OUTPUTS]

    def close(self) -> None:
        """Free the compiled model."""
        super().close()
        self._model = None
