"""Clips whose cause is known: a sprite's motion alone decides the class. NumPy and OpenCV alone."""

from typing import TYPE_CHECKING

from selrel_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from .embedded import demo_clip as demo_clip
    from .embedded import demo_frames as demo_frames
    from .generator import GENERATOR_VERSION as GENERATOR_VERSION
    from .generator import SyntheticClip as SyntheticClip
    from .generator import SyntheticSpec as SyntheticSpec
    from .generator import dataset as dataset
    from .generator import frozen as frozen
    from .generator import make_clip as make_clip
    from .motion import CLASSES as CLASSES
    from .scenes import SCENES as SCENES

_NAMES = {
    "CLASSES": "motion",
    "GENERATOR_VERSION": "generator",
    "SCENES": "scenes",
    "SyntheticClip": "generator",
    "SyntheticSpec": "generator",
    "dataset": "generator",
    "demo_clip": "embedded",
    "demo_frames": "embedded",
    "frozen": "generator",
    "make_clip": "generator",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
