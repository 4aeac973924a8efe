"""Networks: one file each, and the registry that knows them."""

from . import c3d as _c3d
from .registry import MODELS, ModelEntry, load_model, register_model

__all__ = ["MODELS", "ModelEntry", "load_model", "register_model"]

assert _c3d  # importing a network's file is what registers it
