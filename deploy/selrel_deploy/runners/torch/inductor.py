"""The compiled graph by torch's own compiler, with constants frozen into packed weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.errors import InputError

from ...precisions import check_runs
from ..base import Clip, Runner, processor
from .compiled import compile_frozen
from .on_cuda import TorchCudaRunner, cuda_options

if TYPE_CHECKING:
    from ...compiler import ExplanationGraph

# Rounding, with pooling windows here and there won by another voxel, stays below; a miscompiled convolution does not.
_MOST_ERROR = {"fp32": 0.02, "bf16": 0.5}


class InductorRunner(Runner):
    """Runs an ExplanationGraph through torch.compile (inductor), which needs a C++ compiler.

    Inductor has been seen to miscompile without a word (transposed 3D convolutions that share a weight, with constants
    frozen). A runner therefore opens only if it agrees with the graph itself on a clip.
    """

    name = "inductor"

    def __init__(self, graph: ExplanationGraph) -> None:
        import torch

        from ..memory import keep_freed_memory

        check_runs(self.name, graph.precision)
        super().__init__(
            graph.clip_shape,
            graph.num_classes,
            device=processor(),
            provider="torch inductor",
            precision=graph.precision,
        )
        keep_freed_memory()
        # What is passed must never look new to torch, down to its strides: it would compile again, and not freeze.
        self._inputs = torch.empty(self.clip_shape), torch.empty(self.clip_shape[0], dtype=torch.int64)
        clip, target = self._probe(), np.full(self.clip_shape[0], -1)
        for tensor, value in zip(self._inputs, (clip, target), strict=True):
            tensor.copy_(torch.from_numpy(value))
        try:
            self._compiled: Any = compile_frozen(graph.form("inductor"), *self._inputs)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            first = str(error.__cause__ or error).strip().splitlines()[0]
            raise InputError(f"inductor cannot compile this graph ({first}): use the eager runner") from None
        relevance = self.run(clip, target)[2]
        expected = graph(*self._inputs)[2].numpy()
        distance = np.linalg.norm(relevance - expected) / np.linalg.norm(expected)
        if not distance <= _MOST_ERROR[graph.precision.partition("+")[0]]:
            raise InputError(
                f"inductor computes another explanation than the graph (relevance differs by {distance:.0%}): "
                "use the eager runner"
            )

    @classmethod
    def open(cls, source: Any, **options: Any) -> Runner:
        """Return a runner for a graph; options: ``device`` ("cpu", "cuda", "cuda:N"), on CUDA ``tf32``, ``cuda_graph``.

        Raises InputError for an artifact, other options, a device that is not there, and a graph it would get wrong.
        """
        import torch

        from ...compiler import ExplanationGraph

        if not isinstance(source, ExplanationGraph):
            raise InputError("the inductor runner takes what compile_explanation returns; for a file use onnxruntime")
        if source.dtype != torch.float32:
            raise InputError(
                f"runners take float32 clips, this graph is {source.dtype}: compile it with a float32 clip"
            )
        if on_cuda := cuda_options(cls.name, options, ("tf32", "cuda_graph")):
            return TorchCudaRunner(source, cls.name, **on_cuda)
        return cls(source)

    def run(self, clip: Clip, target: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[Any]]:
        """Return the graph's outputs."""
        import torch

        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of arrays that cannot be written: they are only read
            for tensor, value in zip(self._inputs, (clip, target), strict=True):
                tensor.copy_(torch.from_numpy(value))
            return [value.numpy() for value in self._compiled(*self._inputs)]

    def close(self) -> None:
        """Drop the compiled graph."""
        super().close()
        self._compiled = None

    def _probe(self) -> Clip:
        """Return a clip with structure: noise that moves over a ground."""
        rng = np.random.default_rng(0)
        return rng.normal(0, 50, self.clip_shape).astype(np.float32)
