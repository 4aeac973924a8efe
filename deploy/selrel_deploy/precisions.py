"""The names of precisions, FORWARD+RELEVANCE, and which runner has which. Without torch."""

from __future__ import annotations

from selrel_zennit.errors import InputError
from selrel_zennit.text import close_names

# One word means both. Divisions, the first (z^B) layer's relevance and the statistics of the selection stay float32.
PRECISIONS = ("fp32", "fp32+bf16", "fp32+fp16", "fp32+int8", "bf16", "bf16+int8", "fp16", "fp16+int8")

# runner → precisions that it runs as they are named. Eager torch is the reference of all. Processors hardly have fp16
# arithmetic, which is for GPUs: inductor and ONNX Runtime's CPU provider would compute it in float32. That provider
# has no bf16, and OpenVINO's hint would put the divisions into bf16 too. No artifact has bf16.
RUNS: dict[str, tuple[str, ...]] = {
    "eager": PRECISIONS,
    "inductor": ("fp32", "fp32+bf16", "fp32+int8", "bf16", "bf16+int8"),
    "onnxruntime": ("fp32", "fp32+int8"),
    "openvino": ("fp32", "fp32+int8"),
    "tensorrt": ("fp32", "fp32+fp16", "fp32+int8", "fp16", "fp16+int8"),
}

# The same on a CUDA device, where it differs: only TensorRT has int8 convolutions in three dimensions there.
RUNS_ON_CUDA: dict[str, tuple[str, ...]] = {
    "inductor": ("fp32", "fp32+bf16", "fp32+fp16", "bf16", "fp16"),
    "onnxruntime": ("fp32", "fp32+fp16", "fp16"),
}


def split_precision(precision: str) -> tuple[str, str]:
    """Return the precision of the forward pass and that of relevance. Raises InputError for an unknown name."""
    if precision not in PRECISIONS:
        near = close_names(precision, PRECISIONS)
        raise InputError(f"no precision {precision!r}{near}; there are {', '.join(PRECISIONS)}")
    forward, _, relevance = precision.partition("+")
    return forward, relevance or forward


def check_runs(runner: str, precision: str, *, cuda: bool = False) -> None:
    """Raise InputError, naming what there is, for a runner that does not run a precision, on CUDA or elsewhere."""
    split_precision(precision)
    table = {**RUNS, **RUNS_ON_CUDA} if cuda else RUNS
    if precision not in table[runner]:
        others = [name for name, has in table.items() if precision in has]
        raise InputError(
            f"the {runner} runner does not run {precision}{' on CUDA' if cuda else ''}, it runs "
            f"{', '.join(table[runner])}; {precision} runs in {', '.join(others)}"
        )
