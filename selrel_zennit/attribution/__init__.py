"""Methods, one file per family, each an attributor that fits Zennit's own types; and the registry of them."""

from .base import VideoAttributor
from .cam import GradCAM
from .gradient import Gradient
from .registry import METHODS, MethodEntry, build_method, register_method
from .target import one_hot, resolve_target

__all__ = [
    "METHODS",
    "GradCAM",
    "Gradient",
    "MethodEntry",
    "VideoAttributor",
    "build_method",
    "one_hot",
    "register_method",
    "resolve_target",
]
