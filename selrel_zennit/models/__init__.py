"""Networks: one file each, which registers itself when it is imported, and the registry that knows them."""

from . import c3d, demo
from .registry import MODELS, ModelEntry, load_model, register_model

__all__ = ["MODELS", "ModelEntry", "c3d", "demo", "load_model", "register_model"]
