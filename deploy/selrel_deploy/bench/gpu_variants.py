"""Ways to run a graph on a device: forward pass and explanation, kernel by kernel or as one CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selrel_zennit.explanation import Explanation

from ..compiler import ExplanationGraph
from ..runners import Runner, open_runner
from ..runners.torch.compiled import compile_frozen
from ..runners.torch.on_cuda import float32_products, on_device, record
from .plain import outputs_alone

Array = npt.NDArray[Any]
Call = Callable[[], Any]


@dataclass(eq=False)
class Variant:
    """A way to run a graph: ``load`` lays clips on the device, ``device_calls`` are what is timed there."""

    runner: Runner
    cuda_graph: bool
    load: Callable[[Array], None]
    device_calls: dict[str, Call]
    explain: Callable[[Array, Any], Explanation]
    peak: int | None


def variants_of(
    graph: ExplanationGraph, name: str, where: torch.device, tf32: bool, opened: ExitStack
) -> list[Variant]:
    """Open a runner once, and its forward pass alone; return what differs by a CUDA graph."""
    cuda, compiled = where.type == "cuda", name == "inductor"
    before = torch.cuda.memory_allocated(where) if cuda else 0
    options = {"device": str(where), "tf32": tf32} if cuda else {}
    run: Any = opened.enter_context(open_runner(graph, name, **options))
    peak = _peak_memory(run, where) - before if cuda else None
    forward = Forward(graph, where, compiled, tf32)
    target = np.full(graph.clip_shape[0], -1, np.int64)
    held: list[Array] = [np.zeros(graph.clip_shape, np.float32)]

    def load(clips: Array) -> None:
        forward.clip.copy_(torch.from_numpy(clips))
        if cuda:
            run.load(clips, target)
        held[0] = clips

    def launched(clips: Array, wanted: Any) -> Explanation:
        run.load(clips, target if wanted is None else np.broadcast_to(wanted, target.shape))
        run.launch()
        return Explanation(*run.fetch())

    plain: Call = run.enqueue if cuda else lambda: run.run(held[0], target)
    calls: dict[str, Call] = {"forward": forward, "explanation": plain}
    found = [Variant(run, False, load, calls, launched if cuda else run, peak)]
    if cuda and compiled:
        calls = {"forward": forward.recorded(), "explanation": run.compute}
        found.append(Variant(run, True, load, calls, run, peak))
    return found


def _peak_memory(run: Any, where: torch.device) -> int:
    """Return the most bytes that lie on the device during an explanation, all that was there before included."""
    for _ in range(2):
        run.launch()
    torch.cuda.synchronize(where)
    torch.cuda.reset_peak_memory_stats(where)
    run.launch()
    torch.cuda.synchronize(where)
    return torch.cuda.max_memory_allocated(where)


class Forward:
    """The forward pass alone, as the graph of the explanation has it."""

    def __init__(self, graph: ExplanationGraph, where: torch.device, compiled: bool, tf32: bool) -> None:
        self.clip, self.tf32 = torch.zeros(graph.clip_shape, device=where), tf32
        self._target = torch.zeros(graph.clip_shape[0], dtype=torch.int64, device=where)
        if where.type == "cuda":
            self._module: Any = on_device(outputs_alone(graph.module, "logits"), where)
        else:
            self._module = outputs_alone(graph.form("eager"), "logits")
        if compiled:
            with float32_products(tf32):
                self._module = compile_frozen(self._module, self.clip, self._target)

    def __call__(self) -> Any:
        """Put the pass on the current stream, inside the caller's ``float32_products``."""
        with torch.no_grad():
            return self._module(self.clip, self._target)

    def recorded(self) -> Call:
        """Return what replays the pass as a CUDA graph."""
        with torch.cuda.device(self.clip.device), float32_products(self.tf32):
            replay = record(self)

        def call() -> None:
            with torch.cuda.device(self.clip.device):
                replay()

        return call


def seconds_of(call: Call, where: torch.device, tf32: bool = False) -> float:
    """Return how long a call takes on a CUDA device, between two of its events; elsewhere by the processor's clock.

    ``tf32`` says whether products of float32 may be TF32 in the call.
    """
    if where.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    with torch.cuda.device(where), float32_products(tf32):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        end.synchronize()
        return 1e-3 * float(begin.elapsed_time(end))
