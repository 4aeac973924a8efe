"""Maps of methods, and how far two of them are apart."""

import torch

import selrel_zennit as sr


def norm_relative(value, reference):
    """Return ‖value − reference‖ ÷ ‖reference‖, in float64."""
    value, reference = (torch.as_tensor(x).double() for x in (value, reference))
    return float((value - reference).norm() / reference.norm())


def relevance_of(name, model, clip, target=1, classes=5, **options):
    """Return the relevance of one class by a method, in the clip's type."""
    return sr.build_method(name, model, **options)(clip, sr.one_hot(target, classes).to(clip))[1]
