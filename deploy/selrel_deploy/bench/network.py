"""The benchmark of a network: Zennit, its peers and every runner, against the runners' own forward passes."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from selrel_zennit.attribution import METHODS, VideoAttributor, build_method
from selrel_zennit.attribution.faults import check_forward
from selrel_zennit.errors import InputError
from selrel_zennit.explanation import Explanation
from selrel_zennit.pipeline import explain
from selrel_zennit.selection.selections import MotionSelection
from selrel_zennit.text import close_names

from ..artifact.export import export
from ..compiler import ExplanationGraph, compile_explanation
from ..compiler.rewriting import constant_bytes
from ..parity.certify import certify
from ..precisions import PRECISIONS, RUNS, check_runs, split_precision
from ..runners import RUNNERS, Runner, open_runner
from ..runners.base import processor
from .conditions import memory_of
from .device import file_options
from .peers import SCALED, Relevance, peers_of
from .plain import Call, forward_module, run_alone, selection_module
from .reference import Remembered, ZennitExplains
from .report import Pacing, Say, Table, measure, parity_figures, silent
from .rows import Bare, Explain, Row, logits_parity
from .timing import Stopwatch
from .windows import Windows

Array = npt.NDArray[Any]

ALL = "all"
CERTIFIED = 3
_TORCH = ("eager", "inductor")


@dataclass(frozen=True)
class Choice:
    """What to benchmark: names, or ("all",) for all there are.

    Of "all", what does not exist or is not installed is left out and named; asked for by name, it is an error.
    """

    methods: tuple[str, ...] = ("dtd",)
    runners: tuple[str, ...] = (ALL,)
    precisions: tuple[str, ...] = ("fp32",)

    def method_names(self) -> list[str]:
        """Return the methods, of "all" those that compile. Raises InputError for an unknown one."""
        if self.methods == (ALL,):
            return [entry.name for entry in METHODS.values() if entry.compilable]
        return [known("method", name, METHODS) for name in self.methods]

    def pairs(self) -> list[tuple[str, str]]:
        """Return (runner, precision) of what is to run. Raises InputError for names and pairs that do not exist."""
        runners = (
            [name for name in RUNNERS if name != "tensorrt"]
            if self.runners == (ALL,)
            else [known("runner", name, RUNNERS) for name in self.runners]
        )
        if "tensorrt" in runners:
            raise InputError("tensorrt times no model here: export it, and time the file (--artifact)")
        every = self.precisions == (ALL,)
        precisions = PRECISIONS if every else [known("precision", name, PRECISIONS) for name in self.precisions]
        if not every and self.runners != (ALL,):
            for runner in runners:
                for precision in precisions:
                    check_runs(runner, precision)
        return [(runner, name) for name in precisions for runner in runners if name in RUNS[runner]]

    def must_run(self, runner: str) -> bool:
        """Whether a runner was asked for by name."""
        return runner in self.runners


def bench_network(
    model: nn.Module,
    windows: Windows,
    choice: Choice,
    pacing: Pacing,
    selection: MotionSelection | None = None,
    say: Say = silent,
) -> dict[str, Any]:
    """Time the methods of ``choice`` on ``model``: return the benchmark as JSON takes it.

    Every row is certified against Zennit on three windows before it is timed. Threads are torch's own number, for every
    runner. Raises InputError for what cannot run, see Choice.
    """
    methods, pairs = choice.method_names(), choice.pairs()
    check_forward(model, torch.from_numpy(windows.rotation().read(0)))
    with ExitStack() as opened, tempfile.TemporaryDirectory() as folder:
        made = _Maker(model, windows, choice, selection or MotionSelection(), opened, Path(folder), say)
        made.forward("eager", "fp32")
        for method in methods:
            made.method(method, pairs)
        about = {
            **about_network(model, made.selection),
            "threads": made.threads,
            "tf32": bool(torch.backends.cuda.matmul.allow_tf32) if torch.cuda.is_available() else None,
        }
        return measure(made.table, windows, pacing, about, say)


def about_network(model: nn.Module, selection: MotionSelection) -> dict[str, Any]:
    """Return what network is explained, and how its motion is selected, as JSON takes it."""
    provenance, spec = getattr(model, "provenance", {}), getattr(model, "spec", None)
    return {
        "model": {
            "model": provenance.get("model", type(model).__name__),
            "weights": provenance.get("weights"),
            "weights_sha256": provenance.get("sha256"),
            "clip_spec": spec.to_dict() if spec is not None else None,
        },
        "selection": {key: list(v) if isinstance(v, tuple) else v for key, v in selection.settings.items()},
    }


class _Maker:
    """Makes the rows, with their memory and parity."""

    def __init__(
        self,
        model: nn.Module,
        windows: Windows,
        choice: Choice,
        selection: MotionSelection,
        opened: ExitStack,
        folder: Path,
        say: Say,
    ) -> None:
        self.model, self.choice, self.selection = model, choice, selection
        self.opened, self.folder, self.say = opened, folder, say
        self.threads = torch.get_num_threads()
        self.clips = windows.moving(CERTIFIED)
        self.table = Table()
        self.weights = sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))

    def method(self, name: str, pairs: Sequence[tuple[str, str]]) -> None:
        """Add all rows of a method: Zennit's, the peers', the runners'."""
        self.say(f"preparing {name}")
        attributor = build_method(name, self.model)
        zennit = _zennit_row(name, attributor, self.selection)
        reference = Remembered(zennit.explain)
        zennit.memory = memory_of(lambda: None, lambda: zennit.explain(self.clips[0], None), shared=self.weights)
        zennit.parity = {"grade": "reference"}
        self.table.rows.append(zennit)
        peers, missing = peers_of(name, self.model)
        for peer in missing:
            self.table.skip(name, peer, "fp32", "not installed")
        for peer, relevance in peers.items():
            self._add(_peer_row(name, peer, relevance, self.model, self.selection), reference, self.weights)
        if not METHODS[name].compilable:
            self.table.skip(name, "runners", "-", "the method is no fixed computation, so it is not compiled")
            return
        for precision in dict.fromkeys(precision for _, precision in pairs):
            runners = [runner for runner, its in pairs if its == precision and self._is_there(name, runner, precision)]
            if runners:
                self._compiled(name, attributor, precision, runners, reference)

    def _compiled(
        self, name: str, attributor: VideoAttributor, precision: str, runners: list[str], reference: Remembered
    ) -> None:
        example = torch.from_numpy(self.clips[0])
        try:
            graph = compile_explanation(attributor, example, selection=self.selection, precision=precision)
        except InputError as error:
            if self.choice.precisions != (ALL,):
                raise
            self.table.skip(name, "runners", precision, str(error))
            return
        path = self.folder / f"{name}-{precision}.onnx"
        if any(runner not in _TORCH for runner in runners):
            export(graph, path, clips=torch.from_numpy(np.concatenate(self.clips)))
        for runner in runners:
            self.forward(runner, split_precision(precision)[0])
            self._selection(runner)
            source, options = (graph, {}) if runner in _TORCH else (path, file_options(runner, self.threads))
            # The graph holds what torch's runners take before there is a runner.
            form = graph.form("plain" if runner == "eager" else "compiled")
            held = constant_bytes(form) if runner in _TORCH else 0
            try:
                row = self._runner(name, precision, runner, source, options, held)
            except InputError as error:
                if self.choice.must_run(runner):
                    raise
                self.table.skip(name, runner, precision, str(error))
                continue
            self._certify(row, reference)
            self.table.rows.append(row)

    def _runner(
        self,
        name: str,
        precision: str,
        runner: str,
        source: ExplanationGraph | Path,
        options: dict[str, Any],
        shared: int,
    ) -> Row:
        self.say(f"preparing {name} {runner} {precision}")
        held: list[Runner] = []
        memory = memory_of(
            lambda: held.append(self.opened.enter_context(open_runner(source, runner, **options))),
            lambda: held[0](self.clips[0], None),
            shared=shared,
        )
        row = _runner_row(name, held[0], precision, options)
        row.memory = memory
        return row

    def _is_there(self, method: str, runner: str, precision: str) -> bool:
        """Say whether a runner's package is installed; note it where it is not, or raise InputError."""
        if importlib.util.find_spec(RUNNERS[runner].needs) is not None:
            return True
        if self.choice.must_run(runner):
            raise InputError(f"the runner {runner} is not installed: pip install {RUNNERS[runner].packages}")
        self.table.skip(method, runner, precision, "not installed")
        return False

    def _add(self, row: Row, reference: Remembered, shared: int) -> None:
        """Add a peer's row, or say why the peer cannot explain this network."""
        try:
            row.memory = memory_of(lambda: None, lambda: row.explain(self.clips[0], None), shared=shared)
            self._certify(row, reference, scaled=row.runner in SCALED)
        except (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, NotImplementedError) as error:
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error) else "failed"
            self.table.skip(row.method, row.runner, row.precision, reason)
        else:
            self.table.rows.append(row)

    def _certify(self, row: Row, reference: Remembered, scaled: bool = False) -> None:
        explain = _rescaled(row.explain, reference) if scaled else row.explain
        certificate = certify(explain, reference, np.concatenate(self.clips), self.selection.settings)
        row.parity = {**parity_figures(certificate), "up_to_a_factor": scaled}

    def forward(self, runner: str, precision: str) -> None:
        """Add the network's forward pass in a runner and precision, once."""
        name = f"forward {runner} {precision}"
        if name in self.table.bares:
            return
        made: list[Call] = []
        memory = memory_of(
            lambda: made.append(self._alone(forward_module(self.model, precision), self.clips[0], runner)),
            lambda: made[0](self.clips[0]),
            shared=self.weights if (runner, precision) == ("eager", "fp32") else 0,
        )
        bare = Bare(name, runner, precision, made[0], memory=memory)
        first = self.table.bares.get("forward eager fp32", bare)
        if first is not bare:
            bare.parity = logits_parity(bare.call, first.call, self.clips)
        self.table.bares[name] = bare

    def _selection(self, runner: str) -> None:
        """Add the selection alone in a runner, once."""
        name = f"selection {runner}"
        if name not in self.table.bares:
            relevance = explain(self.model, torch.from_numpy(self.clips[0]), "gradient").relevance
            module = selection_module(self.selection, torch.from_numpy(relevance))
            call = self._alone(module, relevance, runner)
            self.table.bares[name] = Bare(name, runner, "fp32", call, input=relevance)

    def _alone(self, module: nn.Module, example: Array, runner: str) -> Call:
        return run_alone(module, example, runner, self.threads, Path(tempfile.mkdtemp(dir=self.folder)))


def _rescaled(explain: Explain, reference: Explain) -> Explain:
    """Return a function that gives each map the factor that brings it nearest to the reference's."""

    def run(clip: Array, target: Any = None) -> Explanation:
        got, right = explain(clip, target), reference(clip, target).relevance.astype(np.float64)
        norm = float((got.relevance.astype(np.float64) ** 2).sum())
        factor = np.float32((got.relevance * right).sum() / norm if norm else 0.0)
        return replace(got, relevance=got.relevance * factor, motion_relevance=got.motion_relevance * factor)

    return run


def _zennit_row(method: str, attributor: VideoAttributor, selection: MotionSelection) -> Row:
    run = ZennitExplains(attributor, selection)

    def step(clip: Array, watch: Stopwatch) -> None:
        seconds: dict[str, float] = {}
        run(clip, seconds=seconds)
        watch.lap("rest")
        watch.laps["original"], watch.laps["selection"] = seconds["forward_backward"], seconds["select"]

    ran = {"device": processor(), "provider_asked": "torch", "provider_used": "torch"}
    return Row(method, "zennit", "fp32", run, step, "forward eager fp32", None, ran)


def _peer_row(method: str, peer: str, relevance: Relevance, model: nn.Module, selection: MotionSelection) -> Row:
    def run(clip: Array, target: Any = None) -> Explanation:
        tensor = torch.from_numpy(np.ascontiguousarray(clip))
        with torch.inference_mode():
            logits = model(tensor)
        wanted = int(logits.argmax()) if target is None or int(target) == -1 else int(target)
        found = relevance(tensor, wanted).float()
        motion, mask = selection(found)
        arrays = (logits.numpy(), np.array([wanted]), found.numpy(), motion.numpy(), mask.numpy())
        return Explanation(*arrays)

    def step(clip: Array, watch: Stopwatch) -> None:
        # It is told a class, as its users have to; looking for the top one is not in its time.
        found = relevance(torch.from_numpy(clip), 0)
        watch.lap("original")
        selection(found)
        watch.lap("selection")

    ran = {"device": processor(), "provider_asked": "torch", "provider_used": "torch"}
    return Row(method, peer, "fp32", run, step, "forward eager fp32", None, ran)


def _runner_row(method: str, runner: Runner, precision: str, options: dict[str, Any]) -> Row:
    def step(clip: Array, watch: Stopwatch) -> None:
        runner(clip, None)
        watch.lap("explanation")

    artifact = getattr(runner, "artifact", None)
    forward = f"forward {runner.name} {split_precision(precision)[0]}"
    ran = {
        "device": runner.device,
        "provider_asked": options.get("provider", options.get("device", "torch")),
        "provider_used": runner.provider,
        "artifact_sha256": artifact.sha256 if artifact is not None else None,
    }
    return Row(method, runner.name, precision, runner, step, forward, f"selection {runner.name}", ran)


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """Return the name if it is one of ``names``. Raises InputError, with those that are near."""
    names = list(names)
    if name not in names:
        raise InputError(f"no {kind} named {name!r}{close_names(name, names)}; there are {', '.join(names)}")
    return name
