"""Methods, one file per family, each an attributor that fits Zennit's own types; and the table of them.

Names load when they are first used: the table alone needs no torch.
"""

from typing import TYPE_CHECKING

from selrel_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from .base import VideoAttributor as VideoAttributor
    from .completion import Completed as Completed
    from .foreign import Adapted as Adapted
    from .foreign import as_attributor as as_attributor
    from .methods.cam import GradCAM as GradCAM
    from .methods.cam import GuidedGradCAM as GuidedGradCAM
    from .methods.control import RandomRelevance as RandomRelevance
    from .methods.excitation import ExcitationBackprop as ExcitationBackprop
    from .methods.gradient import Gradient as Gradient
    from .methods.gradient import GradientXInput as GradientXInput
    from .methods.lrp import Contrastive as Contrastive
    from .methods.occlusion import Occlusion as Occlusion
    from .methods.sampling import IntegratedGradients as IntegratedGradients
    from .methods.sampling import SmoothGrad as SmoothGrad
    from .registry import build_method as build_method
    from .table import METHODS as METHODS
    from .table import MethodEntry as MethodEntry
    from .table import register_method as register_method
    from .target import one_hot as one_hot
    from .target import resolve_target as resolve_target

_NAMES = {
    "Adapted": "foreign",
    "Completed": "completion",
    "Contrastive": "methods.lrp",
    "ExcitationBackprop": "methods.excitation",
    "GradCAM": "methods.cam",
    "Gradient": "methods.gradient",
    "GradientXInput": "methods.gradient",
    "GuidedGradCAM": "methods.cam",
    "IntegratedGradients": "methods.sampling",
    "METHODS": "table",
    "MethodEntry": "table",
    "Occlusion": "methods.occlusion",
    "RandomRelevance": "methods.control",
    "SmoothGrad": "methods.sampling",
    "VideoAttributor": "base",
    "as_attributor": "foreign",
    "build_method": "registry",
    "one_hot": "target",
    "register_method": "table",
    "resolve_target": "target",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
