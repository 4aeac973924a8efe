"""What explains a window in torch: a method of the registry, with the margin taken apart or without."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from selrel_zennit.attribution import METHODS, build_method
from selrel_zennit.cli.options import weights_entry
from selrel_zennit.clips.spec import Frames
from selrel_zennit.loop import TOP, Condition
from selrel_zennit.pipeline import explain, spec_of
from selrel_zennit.selection.selections import MotionSelection

from .engines import Engine, Looked

_CHEAPEST = "gradient_x_input"


class TorchEngine(Engine):
    """A method on a network, eager. ``split``: the margin is taken apart too, against the clip's middle frame."""

    def __init__(self, model: nn.Module, method: str, split: bool = False) -> None:
        self._model, self._method = model, build_method(method, model)
        self._split = "middle" if split else None
        self.spec = spec_of(model)
        names = getattr(model, "class_names", None)
        self.class_names = None if names is None else list(names)
        with torch.no_grad():
            self.num_classes = int(model(torch.zeros(1, *self.spec.shape)).shape[1])
        self.motion = split or method == "motion_lrp"
        self.name = f"{method} and motion split" if split else method
        provenance: dict[str, Any] = model.provenance  # type: ignore[assignment]
        self.settings = {
            "model": provenance.get("model") or type(model).__name__,
            "weights": weights_entry(provenance),
            "method": method,
            "preset": "default",
            "n_sigma": MotionSelection().n_sigma,
            "runner": "torch",
            "device": "cpu",
        }
        self.info = dict(getattr(self._method, "info", {}))

    def look(self, pixels: Frames, target: int, when: Condition | None) -> Looked:
        """Return what a window shows; see ``Engine.look``."""
        clip = torch.from_numpy(self.spec.from_pixels(pixels[None]))
        if when is not None:
            with torch.no_grad():
                logits = self._model(clip).float().numpy()
            if when.measure(logits) < when.probability:
                return Looked(logits, None)
        wanted = "top1" if target == TOP else target
        explanation = explain(self._model, clip, self._method, wanted, motion=self._split)
        return Looked(explanation.logits, explanation)


def torch_engines(model: nn.Module, method: str) -> list[TorchEngine]:
    """Return the engines of a method, the best first: with the margin taken apart, without, and the cheapest method."""
    engines = [] if method == "motion_lrp" else [TorchEngine(model, method, split=True)]
    engines.append(TorchEngine(model, method))
    if METHODS[method].passes > METHODS[_CHEAPEST].passes:
        engines.append(TorchEngine(model, _CHEAPEST))
    return engines
