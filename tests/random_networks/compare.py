"""One drawn network, one method: the product against the definition."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import selrel_zennit as sr

from .definition import Definition
from .grammar import CLASSES, Draw

TOLERANCE = 1e-6
# Of an artifact, which computes in float32: rounding of its own, and winners of max pools that are all but equal.
TOLERANCE_FLOAT32 = 1e-3


@dataclass
class Outcome:
    """What came of one method on one draw: ``kind`` is "equal", "refused", "wrong" or "crashed"."""

    kind: str
    error: float | None = None
    said: str = ""


def define(drawn: Draw) -> Definition:
    """Return the definition of a drawn network on its clip."""
    low, high = (torch.from_numpy(bound) for bound in drawn.model.spec.bounds())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Definition(drawn.model, drawn.clip, low, high)


def relative_error(found: torch.Tensor, true: torch.Tensor) -> float:
    """Return ‖found − true‖ ÷ ‖true‖; of a true map of zeros, the plain norm."""
    size = float(true.norm())
    return float((found - true).norm()) / (size if size > 1e-12 else 1.0)


def outcome(drawn: Draw, definition: Definition, method: str) -> Outcome:
    """Run the product's method and hold it against the definition."""

    def explain() -> tuple[torch.Tensor, torch.Tensor]:
        with sr.build_method(method, drawn.model) as attributor:
            return attributor(drawn.clip, sr.one_hot(drawn.target, CLASSES))

    return _held(explain, definition, method, drawn.target, TOLERANCE)


def on_device(drawn: Draw, method: str, folder: Path) -> Outcome:
    """Compile the method, export it, run the artifact in ONNX Runtime, and hold it against the definition.

    The definition is that of the float32 network on the float32 clip, computed in float64.
    """
    from selrel_deploy import compile_explanation, open_runner
    from selrel_deploy.artifact import export

    model = copy.deepcopy(drawn.model).float()
    clip = drawn.clip.float()
    rounded = Draw(drawn.seed, copy.deepcopy(model).double(), clip.double(), drawn.target, drawn.kinds)

    def explain() -> tuple[torch.Tensor, torch.Tensor]:
        with sr.build_method(method, model) as attributor:
            graph = compile_explanation(attributor, clip)
        path = export(graph, folder / f"{method}.onnx", clips=clip)
        with open_runner(path, "onnxruntime", threads=1) as run:
            found = run(clip.numpy(), target=drawn.target)
        return tuple(torch.from_numpy(one).double() for one in (found.logits, found.relevance))

    return _held(explain, define(rounded), method, drawn.target, TOLERANCE_FLOAT32)


def _held(
    explain: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    definition: Definition,
    method: str,
    target: int,
    tolerance: float,
) -> Outcome:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits, found = explain()
    except sr.InputError as error:
        said = str(error)
        return Outcome("crashed" if "\n" in said or len(said) > 400 else "refused", said=said)
    except Exception as error:
        return Outcome("crashed", said=f"{type(error).__name__}: {error}"[:300])
    true = definition.explain(method, target)
    if true.shape != found.shape:  # artifacts sum over channels
        true = true.sum(1)
        found = found.reshape(true.shape)
    off = max(relative_error(found, true), relative_error(logits, definition.logits))
    return Outcome("equal" if off <= tolerance else "wrong", off)
