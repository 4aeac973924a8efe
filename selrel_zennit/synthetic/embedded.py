"""The embedded clip: made by the generator when it is asked for, so that no file ships."""

from __future__ import annotations

from ..clips.spec import Frames
from .generator import SyntheticClip, SyntheticSpec, make_clip

_SEED, _INDEX = 0, 53_248


def demo_clip() -> SyntheticClip:
    """Return the embedded clip with its truth: 16 frames of 112 × 112 pixels."""
    return make_clip(SyntheticSpec(), _SEED, _INDEX)


def demo_frames() -> Frames:
    """Return the embedded clip's frames, uint8 [16,112,112,3] RGB."""
    return demo_clip().frames
