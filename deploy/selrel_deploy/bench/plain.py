"""A module alone in a runtime, as a runner would run it: what an explanation's time is held against."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from selrel_kernels.reference import select_motion
from selrel_zennit.selection.selections import Selection

from ..artifact.format import OUTPUTS
from ..artifact.onnx_file import OPSET
from ..compiler.capture.lower import adaptive_average_pool
from ..runners.torch.compiled import compile_frozen

Array = npt.NDArray[Any]
Call = Callable[[Array], Array]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Cast(nn.Module):
    """A network in another precision: float32 in, float32 out."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = deepcopy(model).to(dtype), dtype

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(clip.to(self.dtype)).float()
        return logits


aten = torch.ops.aten
ADAPTIVE_POOLS: dict[Any, Callable[..., Any]] = {
    aten.adaptive_avg_pool3d.default: adaptive_average_pool,
    aten._adaptive_avg_pool3d.default: adaptive_average_pool,
}


def forward_module(model: nn.Module, precision: str) -> nn.Module:
    """Return the network in fp32, bf16 or fp16; a copy where it is not float32."""
    dtype = _DTYPES[precision]
    return model if dtype == torch.float32 else _Cast(model, dtype).eval()


def selection_module(selection: Selection, relevance: torch.Tensor) -> nn.Module:
    """Return the selection as a graph, as it stands in an explanation: relevance [B,T,H,W] → motion relevance."""
    return make_fx(lambda relevance: select_motion(relevance, **selection.settings)[0])(relevance)


def outputs_alone(graph: fx.GraphModule, *names: str) -> fx.GraphModule:
    """Return the graph of an explanation with some of its outputs, and what only the others need left out."""
    copy = fx.Graph()
    values: Any = copy.graph_copy(graph.graph, {})
    copy.output(tuple(values[OUTPUTS.index(name)] for name in names))
    copy.eliminate_dead_code()
    return fx.GraphModule(graph, copy)


def run_alone(module: nn.Module, example: Array, runner: str, threads: int, folder: Path) -> Call:
    """Return a function that runs a module in a runtime, with its threads: NumPy in and out."""
    if runner == "eager":
        return _in_torch(module)
    if runner == "inductor":
        # As the runner does it: a forward pass whose weights are not packed would make explanations look cheap. A graph
        # has code of its own; compiled without guards, two networks of one class would share the first one's.
        graph: Any = torch.export.export(module, (torch.from_numpy(example),)).module()
        return _in_torch(compile_frozen(graph, torch.from_numpy(example)))
    path = folder / "alone.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.export.export(module, (torch.from_numpy(example),))
        if any(node.target in ADAPTIVE_POOLS for node in exported.graph.nodes):
            # The exporter has no rule for them where the size is not 1 on every axis.
            exported = exported.run_decompositions(ADAPTIVE_POOLS)
        torch.onnx.export(
            exported,
            (),
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["output"],
            verbose=False,
        )
    return _in_onnxruntime(path, threads) if runner == "onnxruntime" else _in_openvino(path, threads)


def _in_torch(call: Callable[[torch.Tensor], torch.Tensor]) -> Call:
    def run(value: Array) -> Array:
        with torch.no_grad():
            output: Array = call(torch.from_numpy(value)).numpy()
        return output

    return run


def _in_onnxruntime(path: Path, threads: int) -> Call:
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(value: Array) -> Array:
        output: Array = session.run(["output"], {"input": value})[0]
        return output

    return run


def _in_openvino(path: Path, threads: int) -> Call:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    model = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(value: Array) -> Array:
        return np.array(model([value])["output"])

    return run
