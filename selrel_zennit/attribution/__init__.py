"""Methods, one file per family, each an attributor that fits Zennit's own types; and the registry of them."""

from .base import VideoAttributor
from .cam import GradCAM, GuidedGradCAM
from .control import RandomRelevance
from .excitation import ExcitationBackprop
from .gradient import Gradient, GradientXInput
from .lrp import Contrastive, EpsilonHead
from .occlusion import Occlusion
from .registry import METHODS, MethodEntry, build_method, register_method
from .sampling import IntegratedGradients, SmoothGrad
from .target import one_hot, resolve_target

__all__ = [
    "METHODS",
    "Contrastive",
    "EpsilonHead",
    "ExcitationBackprop",
    "GradCAM",
    "Gradient",
    "GradientXInput",
    "GuidedGradCAM",
    "IntegratedGradients",
    "MethodEntry",
    "Occlusion",
    "RandomRelevance",
    "SmoothGrad",
    "VideoAttributor",
    "build_method",
    "one_hot",
    "register_method",
    "resolve_target",
]
