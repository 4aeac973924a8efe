"""The compiled graph as it is, in torch: the reference of all other runners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.errors import InputError

from ..base import Clip, Runner, processor
from .on_cuda import TorchCudaRunner, cuda_options

if TYPE_CHECKING:
    from ...compiler import ExplanationGraph


class EagerRunner(Runner):
    """Runs an ExplanationGraph operation by operation."""

    name = "eager"

    def __init__(self, graph: ExplanationGraph) -> None:
        super().__init__(
            graph.clip_shape, graph.num_classes, device=processor(), provider="torch", precision=graph.precision
        )
        self._module: Any = graph.form("eager")

    @classmethod
    def open(cls, source: Any, **options: Any) -> Runner:
        """Return a runner for a graph; options: ``device`` ("cpu", "cuda", "cuda:N") and, on CUDA, ``tf32``.

        Raises InputError for an artifact, which holds no torch graph, other options, and a device that is not there.
        """
        import torch

        from ...compiler import ExplanationGraph

        if not isinstance(source, ExplanationGraph):
            raise InputError("the eager runner takes what compile_explanation returns; for a file use onnxruntime")
        if source.dtype != torch.float32:
            raise InputError(
                f"runners take float32 clips, this graph is {source.dtype}: compile it with a float32 clip"
            )
        if on_cuda := cuda_options(cls.name, options, ("tf32",)):
            return TorchCudaRunner(source, cls.name, **on_cuda)
        return cls(source)

    def run(self, clip: Clip, target: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[Any]]:
        """Return the graph's outputs."""
        import torch

        # Copies: torch warns of arrays that cannot be written.
        with torch.no_grad():
            return [value.numpy() for value in self._module(torch.tensor(clip), torch.tensor(target))]

    def close(self) -> None:
        """Drop the graph."""
        super().close()
        self._module = None
