"""Methods, one file per family, each an attributor that fits Zennit's own types; and the table of them.

Names load when they are first used: the table alone needs no torch.
"""

from typing import TYPE_CHECKING

from selrel_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from .base import VideoAttributor as VideoAttributor
    from .cam import GradCAM as GradCAM
    from .cam import GuidedGradCAM as GuidedGradCAM
    from .completion import Completed as Completed
    from .control import RandomRelevance as RandomRelevance
    from .excitation import ExcitationBackprop as ExcitationBackprop
    from .foreign import Adapted as Adapted
    from .foreign import as_attributor as as_attributor
    from .gradient import Gradient as Gradient
    from .gradient import GradientXInput as GradientXInput
    from .lrp import Contrastive as Contrastive
    from .occlusion import Occlusion as Occlusion
    from .registry import build_method as build_method
    from .sampling import IntegratedGradients as IntegratedGradients
    from .sampling import SmoothGrad as SmoothGrad
    from .table import METHODS as METHODS
    from .table import MethodEntry as MethodEntry
    from .table import register_method as register_method
    from .target import one_hot as one_hot
    from .target import resolve_target as resolve_target

_NAMES = {
    "Adapted": "foreign",
    "Completed": "completion",
    "Contrastive": "lrp",
    "ExcitationBackprop": "excitation",
    "GradCAM": "cam",
    "Gradient": "gradient",
    "GradientXInput": "gradient",
    "GuidedGradCAM": "cam",
    "IntegratedGradients": "sampling",
    "METHODS": "table",
    "MethodEntry": "table",
    "Occlusion": "occlusion",
    "RandomRelevance": "control",
    "SmoothGrad": "sampling",
    "VideoAttributor": "base",
    "as_attributor": "foreign",
    "build_method": "registry",
    "one_hot": "target",
    "register_method": "table",
    "resolve_target": "target",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
