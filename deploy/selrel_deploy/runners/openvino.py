"""Artifacts in OpenVINO. Without torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.errors import InputError

from ..artifact.format import OUTPUTS, Artifact, read_artifact
from ..precisions import check_runs
from .base import Clip, Outputs, Runner

_HINT = "INFERENCE_PRECISION_HINT"
# Rounding, with a pooling window here and there won by another voxel, stays far below this.
_MOST_ERROR = 1e-2


class OpenVinoRunner(Runner):
    """Runs an artifact on a device of OpenVINO, in the precision of the artifact.

    On processors with bf16 arithmetic OpenVINO runs a float32 model in bf16 unless told otherwise, which ruins
    explanations of real clips. The precision is therefore set, and read back. And since some of its kernels have lost
    the stabiliser of a division, a runner opens only if it reproduces a golden case, unless ``check`` is false: for the
    parity certificate, which looks at all of them.
    """

    name = "openvino"

    def __init__(self, artifact: Artifact, device: str = "CPU", threads: int = 0, check: bool = True) -> None:
        import openvino

        check_runs(self.name, artifact.precision)
        core = openvino.Core()
        available = core.available_devices
        if device not in available:
            raise InputError(f"OpenVINO has no device {device}; it has {', '.join(available)}: install its driver")
        settings = _settings(device, threads)
        self._requests: dict[str, Any] = {
            part: _compiled(core, path, device, settings).create_infer_request()
            for part, path in artifact.parts.items()
        }
        super().__init__(
            artifact.clip_shape,
            artifact.num_classes,
            device=core.get_property(device, "FULL_DEVICE_NAME"),
            provider=device,
            precision=artifact.precision,
            frames_shape=artifact.frames_shape,
        )
        self.artifact, self.split = artifact, artifact.split
        self._clip: Clip | None = None
        if self.split:
            self._join()
        if check:
            self._check_golden()

    @classmethod
    def open(cls, source: Any, **options: Any) -> OpenVinoRunner:
        """Return a runner for an artifact; options: ``device``, ``threads`` (0: as OpenVINO sees fit), ``check``."""
        if not isinstance(source, str | Path):
            raise InputError("the openvino runner takes an artifact: export the graph first, or use eager")
        unknown = sorted(set(options) - {"device", "threads", "check"})
        if unknown:
            raise InputError(f"the openvino runner has no option {unknown[0]!r}; there are device, threads, check")
        return cls(read_artifact(source), **options)

    def run(self, clip: Clip, target: npt.NDArray[np.int64]) -> Outputs:
        """Return the artifact's outputs."""
        results = self._requests["explanation"].infer({self.artifact.input_name: clip, "target": target})
        # Copies: the next call writes into the same memory.
        return [np.array(results[name]) for name in OUTPUTS]

    def run_forward(self, clip: Clip) -> npt.NDArray[Any]:
        """Return the logits; the activations stay in the runtime."""
        self._clip = clip
        return np.array(self._requests["forward"].infer({self.artifact.input_name: clip})["logits"])

    def run_explain(self, target: npt.NDArray[np.int64]) -> Outputs:
        """Return the other outputs of the clip that was forwarded last."""
        inputs: dict[str, Any] = {"target": target}
        if self._takes_clip:
            inputs[self.artifact.input_name] = self._clip
        results = self._requests["explain"].infer(inputs)
        return [np.array(results[name]) for name in OUTPUTS[1:]]

    def close(self) -> None:
        """Free the compiled model."""
        super().close()
        self._requests = {}
        self._clip = None

    def _join(self) -> None:
        """Let the second part read the activations where the first writes them."""
        forward, explain = self._requests["forward"], self._requests["explain"]
        made = {name for output in forward.model_outputs for name in output.get_names()}
        self._takes_clip = False
        for port in explain.model_inputs:
            name = port.get_any_name()
            self._takes_clip |= name == self.artifact.input_name
            if name in made:
                explain.set_tensor(name, forward.get_tensor(name))

    def _check_golden(self) -> None:
        golden = self.artifact.golden()
        outputs = self._outputs(golden[self.artifact.input_name][0], golden["target"][0])
        self._logits = None  # what was looked at is no clip of the caller's
        relevance = outputs[OUTPUTS.index("relevance")]
        distance = np.linalg.norm(relevance - golden["relevance"][0]) / np.linalg.norm(golden["relevance"][0])
        if not distance <= _MOST_ERROR:
            raise InputError(
                f"OpenVINO computes another explanation than {self.artifact.path} holds as golden (relevance differs "
                f"by {distance:.0%}): set another number of threads, or use onnxruntime"
            )


def _settings(device: str, threads: int) -> dict[str, Any]:
    settings: dict[str, Any] = {_HINT: "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    if device == "CPU" and (threads or _cores()) == 1:
        # On one thread the kernels that OpenVINO 2026.4 fuses lose the stabiliser of a division, or crash.
        settings["SNIPPETS_MODE"] = "DISABLE"
    return settings


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(core: Any, path: Path) -> Any:
    """Return a model in the operations that OpenVINO is fastest at, where an artifact's are for other runtimes."""
    model = core.read_model(str(path))
    _merge_repeated(model)
    _multiply_columns(model)
    return model


def _multiply_columns(model: Any) -> None:
    """Write a linear layer's R·W as a product again; an artifact has a transposed convolution of one voxel.

    Not where W is square: OpenVINO 2026.4 packs a weight once by its shape, and would take x·Wᵀ's packed one for R·W.
    """
    from openvino import opset11

    for column in model.get_ordered_ops():
        if column.get_type_name() != "ConvolutionBackpropData":
            continue
        (value, weight), result = column.input_values()[:2], column.output(0)
        shapes = [list(port.get_shape()) for port in (value, weight, result)]
        if any(len(shape) != 3 or shape[2] != 1 for shape in shapes) or shapes[1][0] == shapes[1][1]:
            continue
        rows, matrix = (opset11.reshape(port, np.array(shape[:2], np.int64), special_zero=False)
                        for port, shape in zip((value, weight), shapes, strict=False))  # fmt: skip
        product = opset11.matmul(rows, matrix, transpose_a=False, transpose_b=False)
        whole = opset11.reshape(product, np.array(shapes[2], np.int64), special_zero=False)
        whole.set_friendly_name(column.get_friendly_name())
        result.replace(whole.output(0))


def _merge_repeated(model: Any) -> None:
    """Make one operation of what repeats the voxels of clips.

    In an artifact it is several, around the resizing of images that other runtimes are fast at. Their reshapes would
    make OpenVINO go from channels last to first and back.
    """
    from openvino import opset11

    for resized in model.get_ordered_ops():
        if resized.get_type_name() != "Interpolate" or len(resized.get_output_shape(0)) != 4:
            continue
        after = [port.get_node() for port in resized.output(0).get_target_inputs()]
        source = _repeated_clip(resized)
        if [node.get_type_name() for node in after] != ["Reshape"] or source is None:
            continue
        shape = list(after[0].get_output_shape(0))
        (batch, channels, time, height, width), (_, images, *size) = source.get_shape(), resized.get_output_shape(0)
        # T by a whole number, behind T; then images, two by two: nothing else looks like this.
        times = images // (channels * time)
        if shape != [batch, channels, times * time, *size] or size != [2 * height, 2 * width]:
            continue
        whole = opset11.interpolate(
            source,
            np.array(shape[2:], np.int64),
            mode="nearest",
            shape_calculation_mode="sizes",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
            axes=np.array([2, 3, 4], np.int64),
        )
        whole.set_friendly_name(after[0].get_friendly_name())
        after[0].output(0).replace(whole.output(0))


def _repeated_clip(resized: Any) -> Any:
    """Return the [B,C,T,H,W] whose frames, each perhaps several times in a row, are the images that are resized."""
    said = resized.get_attributes()
    modes = [said[key] for key in ("mode", "coordinate_transformation_mode", "nearest_mode")]
    images = resized.input_value(0)
    if modes != ["nearest", "asymmetric", "floor"] or images.get_node().get_type_name() != "Reshape":
        return None
    source = images.get_node().input_value(0)
    if len(source.get_shape()) == 6 and source.get_node().get_type_name() == "Broadcast":
        single = source.get_node().input_value(0)
        shape = list(single.get_shape())
        # [B,C,T,1,H,W]: repeated behind T.
        if len(shape) != 6 or shape[3] != 1 or single.get_node().get_type_name() not in ("Reshape", "Unsqueeze"):
            return None
        source = single.get_node().input_value(0)
        if list(source.get_shape()) != [*shape[:3], *shape[4:]]:
            return None
    return source if len(source.get_shape()) == 5 else None


def _compiled(core: Any, path: Path, device: str, settings: dict[str, Any]) -> Any:
    try:
        model = core.compile_model(_read(core, path), device, settings)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1]
        raise InputError(f"{path} does not run in OpenVINO ({first}): try another runner") from None
    precision = model.get_property(_HINT).to_string()
    if precision != "f32":
        raise InputError(f"OpenVINO runs {path} in {precision}, not in f32: use another device or runner")
    used = list(model.get_property("EXECUTION_DEVICES"))
    if used != [device]:
        raise InputError(f"OpenVINO runs {path} on {', '.join(used)}, not on {device}: use another device")
    return model
