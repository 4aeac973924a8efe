"""Metrics of explanations: against a planted cause, and of how much they depend on the class and the weights."""

from typing import TYPE_CHECKING

from selrel_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from .counterfactual import Counterfactuals as Counterfactuals
    from .counterfactual import counterfactuals as counterfactuals
    from .planted import FlowPrecision as FlowPrecision
    from .planted import TopShare as TopShare
    from .planted import flow_precision as flow_precision
    from .planted import kept_area as kept_area
    from .planted import mass_inside as mass_inside
    from .planted import planted_scores as planted_scores
    from .planted import rank_accuracy as rank_accuracy
    from .planted import swept as swept
    from .planted import top_share as top_share
    from .sensitivity import ClassSensitivity as ClassSensitivity
    from .sensitivity import LayerStep as LayerStep
    from .sensitivity import class_sensitivity as class_sensitivity
    from .sensitivity import layer_randomisation as layer_randomisation
    from .sensitivity import sanity_check as sanity_check

_NAMES = {
    "ClassSensitivity": "sensitivity",
    "Counterfactuals": "counterfactual",
    "FlowPrecision": "planted",
    "LayerStep": "sensitivity",
    "TopShare": "planted",
    "class_sensitivity": "sensitivity",
    "counterfactuals": "counterfactual",
    "flow_precision": "planted",
    "kept_area": "planted",
    "layer_randomisation": "sensitivity",
    "mass_inside": "planted",
    "planted_scores": "planted",
    "rank_accuracy": "planted",
    "sanity_check": "sensitivity",
    "swept": "planted",
    "top_share": "planted",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
