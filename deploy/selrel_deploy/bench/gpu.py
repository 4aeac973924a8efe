"""The benchmark of a network on a CUDA device: forward pass and explanation by CUDA events, copies apart.

Built, not run: no GPU has run it yet. On the processor (device "cpu") it can be rehearsed, by the processor's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from selrel_zennit.attribution import METHODS, build_method
from selrel_zennit.attribution.faults import check_forward
from selrel_zennit.errors import InputError
from selrel_zennit.explanation import Explanation
from selrel_zennit.selection.selections import MotionSelection

from ..compiler import compile_explanation
from ..parity.certify import certify
from ..precisions import PRECISIONS, RUNS, RUNS_ON_CUDA
from ..runners import RUNNERS
from ..runners.torch.on_cuda import cuda_device
from .conditions import machine
from .gpu_variants import Variant, seconds_of, variants_of
from .gpu_watch import GpuWatch
from .network import ALL, CERTIFIED, about_network, known
from .reference import Remembered, ZennitExplains
from .report import FPS, Pacing, Say, about_clips, few_samples, parity_figures, silent
from .timing import Laps, interleave, rounds_for, statistics, warm_up
from .windows import LEAST, Windows

Array = npt.NDArray[Any]

SCHEMA = "1.0"
RUNNERS_HERE = ("eager", "inductor")
# float32 whose products may be rounded to TF32; "fp32" never rounds them.
TF32 = "tf32"


@dataclass(frozen=True)
class GpuChoice:
    """What to time: names, or ("all",); clips per call; on ``device`` "cuda" or "cuda:N" ("cpu" rehearses).

    ``precisions`` are those of RUNS_ON_CUDA, and "tf32". Compiled graphs run with and without a CUDA graph.
    """

    methods: tuple[str, ...] = ("dtd",)
    runners: tuple[str, ...] = (ALL,)
    precisions: tuple[str, ...] = ("fp32", TF32, "bf16")
    device: str = "cuda"
    batches: tuple[int, ...] = (1, 8, 32)

    def where(self) -> torch.device:
        """Return torch's name of the device. Raises InputError where there is none."""
        return torch.device("cpu") if self.device == "cpu" else cuda_device(self.device)

    def method_names(self) -> list[str]:
        """Return the methods, of "all" those that compile. Raises InputError for one that is unknown or does not."""
        compilable = [entry.name for entry in METHODS.values() if entry.compilable]
        if self.methods == (ALL,):
            return compilable
        for name in self.methods:
            if known("method", name, METHODS) not in compilable:
                raise InputError(f"{name} is no fixed computation, so no graph of it can be timed on a GPU")
        return list(self.methods)

    def pairs(self) -> list[tuple[str, str]]:
        """Return (runner, precision) of what is to run. Raises InputError for names and pairs that do not exist."""
        table = RUNS if self.device == "cpu" else {**RUNS, **RUNS_ON_CUDA}
        every = self.precisions == (ALL,)
        precisions = (
            [TF32, *PRECISIONS] if every else [known("precision", p, (TF32, *PRECISIONS)) for p in self.precisions]
        )
        if self.runners == (ALL,):
            runners = list(RUNNERS_HERE)
        else:
            runners = [known("runner of a model on a GPU", name, RUNNERS_HERE) for name in self.runners]
        if self.device == "cpu" and not every and TF32 in precisions:
            raise InputError("tf32 exists on CUDA alone")
        pairs = [
            (runner, precision)
            for precision in precisions
            for runner in runners
            if (self.device != "cpu" if precision == TF32 else precision in table[runner])
        ]
        if not pairs:
            raise InputError(f"no runner of {', '.join(runners)} runs {', '.join(precisions)} on {self.device}")
        return pairs


def bench_gpu(
    model: nn.Module,
    windows: Windows,
    choice: GpuChoice,
    pacing: Pacing,
    selection: MotionSelection | None = None,
    say: Say = silent,
) -> dict[str, Any]:
    """Time the methods of ``choice`` for ``model`` (on the processor, where it stays): the benchmark as JSON takes it.

    Per batch, precision and runner: the forward pass alone and the explanation, each on the device between two CUDA
    events, clips taken in turn and laid there before; ``end_to_end`` from NumPy clips to NumPy maps; ``read`` what
    decoding and resizing the clips took. ``streams``: cameras of 30 frames per second whose clips are done before the
    next are full, by the 99th percentile. Copies are timed from pageable and from pinned memory. Every row is certified
    against Zennit on the processor, on three windows. What does not fit the device's memory is left out and named.

    Raises InputError for names that do not exist, and without such a device.
    """
    where, methods, pairs = choice.where(), choice.method_names(), choice.pairs()
    selection = selection or MotionSelection()
    clips = windows.moving(CERTIFIED)
    check_forward(model, torch.from_numpy(clips[0]))
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for method in methods:
        reference = Remembered(ZennitExplains(build_method(method, model), selection))
        for batch in choice.batches:
            for precision in dict.fromkeys(precision for _, precision in pairs):
                runners = [runner for runner, its in pairs if its == precision]
                say(f"{method}, {precision}, batch {batch}")
                try:
                    group = _Group(model, method, batch, precision, where, selection, windows, pacing)
                    rows += group.rows(runners, clips, reference)
                except (InputError, RuntimeError) as error:
                    why = str(error) if isinstance(error, InputError) else _too_large(error)
                    if why is None:
                        raise
                    skipped.append({"method": method, "batch": batch, "precision": precision, "why": why})
    if not rows:
        raise InputError(skipped[0]["why"])
    return {
        "schema": f"selrel-bench-gpu {SCHEMA}",
        "machine": machine(),
        "gpu": _about(where),
        **about_network(model, selection),
        "clips": about_clips(windows),
        "budget": pacing.budget,
        "rows": rows,
        "warnings": sorted({text for row in rows for text in row["warnings"]}),
        "copies": [_copies(clips[0], batch, where, pacing) for batch in choice.batches],
        "skipped": skipped,
    }


class _Group:
    """All rows of one method, batch and precision, which take turns."""

    def __init__(
        self,
        model: nn.Module,
        method: str,
        batch: int,
        precision: str,
        where: torch.device,
        selection: MotionSelection,
        windows: Windows,
        pacing: Pacing,
    ) -> None:
        self.method, self.batch, self.precision, self.where = method, batch, precision, where
        self.windows, self.pacing, self.selection = windows, pacing, selection
        self.tf32 = precision == TF32
        rotation = windows.rotation()
        self.ready = [rotation.read(index) for index in range(min(len(windows), LEAST))]
        example = torch.from_numpy(self.ready[0]).repeat_interleave(batch, 0)
        self.graph = compile_explanation(
            build_method(method, model), example, selection, "fp32" if self.tf32 else precision
        )

    def rows(self, runners: Sequence[str], clips: list[Array], reference: Remembered) -> list[dict[str, Any]]:
        """Return the figures of every runner, with and without a CUDA graph."""
        with ExitStack() as opened:
            variants = [
                variant
                for runner in runners
                for variant in variants_of(self.graph, runner, self.where, self.tf32, opened)
            ]
            calls = {f"{i} {what}": self._timed(v, what) for i, v in enumerate(variants) for what in v.device_calls}
            calls |= {f"{i} whole": self._whole(variant) for i, variant in enumerate(variants)}
            warmed = warm_up(calls, rest=_no_rest, most=20.0)
            watch = GpuWatch(_uuid(self.where)) if self.where.type == "cuda" else None
            samples = interleave(calls, rounds_for(self.pacing.rounds, self.pacing.seconds), _no_rest)
            sampled = watch.stop() if watch is not None else None
            found = []
            for index, variant in enumerate(variants):
                laps = {what: samples[f"{index} {what}"]["device"] for what in variant.device_calls}
                laps |= samples[f"{index} whole"]
                certificate = certify(
                    _last_of(variant.explain, self.batch), reference, np.concatenate(clips), self.selection.settings
                )
                row = self._figures(variant, laps, sampled) | {"parity": parity_figures(certificate)}
                moving = [name for name in warmed["not_stable"] if name.startswith(f"{index} ")]
                found.append(row | {"warm_up": warmed, "warnings": _warnings(row, moving)})
            return found

    def _figures(self, variant: Variant, laps: dict[str, list[float]], sampled: Any) -> dict[str, Any]:
        stages = {stage: statistics(taken) for stage, taken in laps.items()}
        fill = self.batch * self.windows.span / FPS
        both = statistics([a + b for a, b in zip(laps["read"], laps["end_to_end"], strict=True)])
        return {
            "method": self.method,
            "batch": self.batch,
            "precision": self.precision,
            "runner": variant.runner.name,
            "cuda_graph": variant.cuda_graph,
            "device": variant.runner.device,
            "provider": variant.runner.provider,
            "status": RUNNERS[variant.runner.name].status if self.where.type == "cuda" else "",
            "clock": "CUDA events" if self.where.type == "cuda" else "the processor's clock",
            "stages": stages,
            "ratios": {"over_forward": stages["explanation"]["p50"] / stages["forward"]["p50"]},
            "streams": {
                "clips_read_elsewhere": int(fill / stages["end_to_end"]["p99"]),
                "clips_read_here": int(fill / both["p99"]),
            },
            "budget": {"share": both["p99"] / self.pacing.budget, "held": both["p99"] <= self.pacing.budget},
            "memory": {"peak": variant.peak},
            "sampled": sampled,
        }

    def _timed(self, variant: Variant, what: str) -> Callable[[int], Laps]:
        def call(index: int) -> Laps:
            batch = np.concatenate([self.ready[(index + place) % len(self.ready)] for place in range(self.batch)])
            variant.load(batch)
            return {"device": seconds_of(variant.device_calls[what], self.where, self.tf32)}

        return call

    def _whole(self, variant: Variant) -> Callable[[int], Laps]:
        # A stream each: they decode where they are.
        rotations = [self.windows.rotation() for _ in range(self.batch)]

        def call(index: int) -> Laps:
            places = [(rotation, index * self.batch + place) for place, rotation in enumerate(rotations)]
            for rotation, window in places:
                rotation.prepare(window)
            start = time.perf_counter()
            batch = np.concatenate([rotation.read(window) for rotation, window in places])
            read = time.perf_counter()
            variant.explain(batch, None)
            return {"read": read - start, "end_to_end": time.perf_counter() - read}

        return call


def _copies(clip: Array, batch: int, where: torch.device, pacing: Pacing) -> dict[str, Any]:
    """Time what goes to the device and what comes back, from pageable and from pinned memory."""
    shape = (batch, *clip.shape[1:])
    # Back come two maps and a mask of a byte; the logits hardly count.
    back_bytes = batch * int(np.prod(clip.shape[2:])) * 9
    found: dict[str, Any] = {"batch": batch, "bytes_to_device": 4 * int(np.prod(shape)), "bytes_back": back_bytes}
    for kind in ("pageable", "pinned") if where.type == "cuda" else ("pageable",):
        pin = kind == "pinned"
        sent, got = torch.zeros(shape, pin_memory=pin), torch.zeros(back_bytes, dtype=torch.uint8, pin_memory=pin)
        there, result = sent.to(where), got.to(where)
        calls: dict[str, Callable[[int], Laps]] = {
            "to_device": lambda _, a=there, b=sent: {"s": seconds_of(lambda: a.copy_(b, non_blocking=True), where)},  # type: ignore[misc]
            "back": lambda _, a=got, b=result: {"s": seconds_of(lambda: a.copy_(b, non_blocking=True), where)},  # type: ignore[misc]
        }
        interleave(calls, iter(range(3)), _no_rest)
        samples = interleave(calls, rounds_for(pacing.rounds, (pacing.seconds or 0) / 5, time.perf_counter), _no_rest)
        found[kind] = {name: statistics(taken["s"]) for name, taken in samples.items()}
    return found


def _warnings(row: dict[str, Any], moving: list[str]) -> list[str]:
    found = few_samples(row["stages"]["explanation"]["n"])
    if moving:
        found.append(f"{row['runner']} {row['precision']}, batch {row['batch']}: not steady to 10 % after the warm-up")
    return found


def _too_large(error: RuntimeError) -> str | None:
    """Return what to say where a device's memory was too small; cuDNN and cuBLAS report it in their own words."""
    if isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error) or "out of memory" in str(error):
        return "the device has too little memory for it"
    return None


def _last_of(explain: Callable[[Array, Any], Explanation], batch: int) -> Callable[[Array, Any], Explanation]:
    """Return a function that explains one clip by filling a batch with it, and gives the last of the results."""

    def run(clip: Array, target: Any = None) -> Explanation:
        wanted = np.broadcast_to(np.asarray(-1 if target is None else target, np.int64).reshape(-1), (batch,))
        found = explain(np.repeat(clip, batch, 0), wanted)
        fields = ("logits", "target", "relevance", "motion_relevance", "mask")
        return Explanation(*(getattr(found, field)[-1:] for field in fields))

    return run


def _uuid(where: torch.device) -> str:
    """Return what nvidia-smi calls a device: its own numbers may be others than torch's."""
    return f"GPU-{torch.cuda.get_device_properties(where).uuid}"


def _about(where: torch.device) -> dict[str, Any] | None:
    if where.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(where)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _no_rest(seconds: float) -> None:
    """Follow at once: a GPU that waits lowers its clocks."""
