"""Networks: one file each, which registers itself when it is imported, and the registry that knows them."""

from . import c3d, demo, i3d, resnet3d, resnet50, small3d, torchvision_video, x3d
from .registry import MODELS, ModelEntry, load_model, register_model

__all__ = [
    "MODELS",
    "ModelEntry",
    "c3d",
    "demo",
    "i3d",
    "load_model",
    "register_model",
    "resnet3d",
    "resnet50",
    "small3d",
    "torchvision_video",
    "x3d",
]
