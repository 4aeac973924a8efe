"""The gradient, plain or modified by a composite: Zennit's Gradient on video."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from zennit.attribution import Gradient as ZennitGradient

from ..clip import ClipSpec
from ..composites import DTD
from ..errors import InputError
from .base import VideoAttributor
from .registry import register_method


class Gradient(VideoAttributor, ZennitGradient):
    """Zennit's Gradient attributor with VideoAttributor's guarantees; with a composite, that composite's relevance."""


@register_method(
    "dtd",
    summary="deep Taylor decomposition: z^B in the first convolution, z⁺ elsewhere, biases dropped",
    citation="Montavon et al. 2017; on C3D: Hiley et al. 2020, arXiv 2003.14285",
    passes=6.0,
    compilable=True,
    warning="nearly blind to the class: maps of different classes are almost the same (Sixt et al. 2020)",
)
def dtd(model: nn.Module) -> Gradient:
    """Return selective relevance's own baseline. The box of z^B is that of ``model.spec``.

    Raises InputError where the model has no ClipSpec.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ClipSpec):
        raise InputError("dtd needs the bounds of valid input: set model.spec = ClipSpec(…), or use load_model")
    low, high = (torch.from_numpy(np.array(bound)) for bound in spec.bounds())
    return Gradient(model, DTD(low=low, high=high))


@register_method(
    "gradient",
    summary="derivative of the target's logit with respect to the clip",
    citation="Simonyan et al. 2014, arXiv 1312.6034",
    passes=2.0,
    compilable=True,
)
def gradient(model: nn.Module) -> Gradient:
    """Return the plain gradient."""
    return Gradient(model)
