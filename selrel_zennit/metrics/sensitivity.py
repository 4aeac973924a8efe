"""How much a map depends on the class it explains, and on the weights of the network it explains."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata
from torch import nn
from zennit.attribution import Attributor

from ..attribution.target import Target
from ..comparison import RUNNER_UP, Versus, cosine, mask_iou, versus
from ..pipeline import explain
from ..selection.selections import MotionSelection, Selection

Scores = npt.NDArray[np.float64]

# From this cosine on the maps of two classes look the same; the sanity check then says so.
_SAME = 0.95


class ClassSensitivity(NamedTuple):
    """How alike the maps of two classes are, one value per clip; 1 is the same map: blind to the class.

    target, other    int [B]    the classes
    cosine           float [B]  of the relevance maps
    motion_cosine    float [B]  of the motion relevance maps
    mask_iou         float [B]  |A∩B| ÷ |A∪B| of the selections' masks
    """

    target: npt.NDArray[np.int64]
    other: npt.NDArray[np.int64]
    cosine: Scores
    motion_cosine: Scores
    mask_iou: Scores

    @classmethod
    def of(cls, pair: Versus) -> ClassSensitivity:
        """Return the values of two explanations that are there already."""
        first, second = pair.first, pair.second
        return cls(
            first.target,
            second.target,
            cosine(first.relevance, second.relevance),
            cosine(first.motion_relevance, second.motion_relevance),
            mask_iou(first.mask, second.mask),
        )


class LayerStep(NamedTuple):
    """The map after a layer and all above it were drawn anew, against that of the network as it is; one per clip.

    layer      str        name of the last layer drawn anew
    cosine     float [B]  of the relevance maps
    spearman   float [B]  rank correlation of the relevance maps
    mask_iou   float [B]  of the selections' masks
    """

    layer: str
    cosine: Scores
    spearman: Scores
    mask_iou: Scores


def class_sensitivity(
    model: nn.Module,
    clip: torch.Tensor,
    method: str | Attributor = "dtd",
    target: Target = "top1",
    other: Target = RUNNER_UP,
    *,
    selection: Selection | None = None,
    **options: Any,
) -> ClassSensitivity:
    """Compare the map of the target with that of another class, by default the runner-up. Arguments: see ``versus``.

    A method that is blind to the class gives 1 (DTD nearly does: Sixt et al. 2020, arXiv 1912.09818).
    """
    return ClassSensitivity.of(versus(model, clip, method, target, other, selection=selection, **options))


def layer_randomisation(
    model: nn.Module,
    clip: torch.Tensor,
    method: str = "dtd",
    target: Target = "top1",
    *,
    selection: Selection | None = None,
    seed: int = 0,
    **options: Any,
) -> list[LayerStep]:
    """Draw the layers' weights anew, from the last layer down to the first, and see how the map changes.

    Returns one step per layer with weights, in the order in which they are drawn anew: each step keeps what the steps
    before it drew. The class explained stays that of the network as it is. A method that explains the network drifts
    away from 1; one whose map stays explains the clip alone. A weight is drawn from a normal distribution with the
    mean and standard deviation of its own values, so that activations keep their scale; statistics of batch norms stay.

    The model is not touched: the layers are drawn in a copy that shares all other weights with it. ``method`` is a
    name, because an attributor is bound to its model. Arguments and errors otherwise: see ``explain``.

    Source: Adebayo et al. 2018, arXiv 1810.03292, cascading randomisation.
    """
    reference = explain(model, clip, method, target, selection=selection, **options)
    copied = _shared_copy(model)
    generator = torch.Generator().manual_seed(seed)
    ranks = _centred_ranks(reference.relevance)
    steps = []
    for name in reversed(_layers_in_order(copied, clip)):
        _draw_anew(copied.get_submodule(name), generator)
        # Selected here and not by explain, which would refuse calibrated thresholds for weights that are not theirs.
        relevance = explain(copied, clip, method, reference.target.tolist(), **options).relevance
        steps.append(
            LayerStep(
                name,
                cosine(reference.relevance, relevance),
                cosine(ranks, _centred_ranks(relevance)),
                mask_iou(reference.mask, (selection or MotionSelection()).mask(relevance)),
            )
        )
    return steps


def sanity_check(
    model: nn.Module,
    clip: torch.Tensor,
    method: str = "dtd",
    target: Target = "top1",
    *,
    selection: Selection | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Return class sensitivity and layer randomisation as plain JSON types, means over the clips, and what they mean.

    Keys: ``class_sensitivity`` (cosine, motion_cosine, mask_iou), ``layers`` (a list of layer, cosine, spearman,
    mask_iou), ``findings`` (sentences; empty where nothing is wrong). A mean that is not defined is null.
    """
    pair = versus(model, clip, method, target, selection=selection, **options)
    classes = ClassSensitivity.of(pair)
    steps = layer_randomisation(
        model, clip, method, pair.first.target.tolist(), selection=selection, seed=seed, **options
    )
    findings = []
    if (alike := _mean(classes.cosine)) is not None and alike >= _SAME:
        findings.append(
            f"{method} hardly tells classes apart here: the runner-up's map is almost the same (cosine {alike:.3f})"
        )
    if steps and (alike := _mean(steps[-1].cosine)) is not None and alike >= _SAME:
        findings.append(
            f"{method} hardly depends on the weights here: with all layers drawn anew the map is almost the same "
            f"(cosine {alike:.3f})"
        )
    return {
        "class_sensitivity": {name: _mean(getattr(classes, name)) for name in ("cosine", "motion_cosine", "mask_iou")},
        "layers": [
            {"layer": step.layer, **{name: _mean(getattr(step, name)) for name in ("cosine", "spearman", "mask_iou")}}
            for step in steps
        ],
        "findings": findings,
    }


def _centred_ranks(relevance: npt.NDArray[np.floating[Any]]) -> Scores:
    """Ranks, equal values sharing their mean rank, less their mean: the cosine of two such is Spearman's ρ."""
    ranks = np.asarray(rankdata(relevance.reshape(len(relevance), -1), axis=1), np.float64)
    return np.asarray(ranks - ranks.mean(axis=1, keepdims=True))


def _shared_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the modules that holds the very same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _layers_in_order(model: nn.Module, clip: torch.Tensor) -> list[str]:
    """Return the names of the modules with parameters of their own, in the order in which they first run."""
    order: dict[str, None] = {}
    handles = [
        module.register_forward_hook(lambda *_, name=name: order.setdefault(name))
        for name, module in model.named_modules()
        if any(parameter is not None for parameter in module._parameters.values())
    ]
    try:
        with torch.no_grad():
            model(clip[:1])
    finally:
        for handle in handles:
            handle.remove()
    return list(order)


def _draw_anew(module: nn.Module, generator: torch.Generator) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None:
            # Drawn on the CPU in float32, so that a seed means the same on every device.
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            spread = parameter.std(correction=0)
            # A new parameter in the copy's place: the one that was there is the model's own.
            module._parameters[name] = nn.Parameter(parameter.mean() + spread * noise, parameter.requires_grad)


def _mean(values: Scores) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None
