"""The embedded demo model: a small C3D that names the motion of the synthetic clips' causal sprite."""

from __future__ import annotations

from pathlib import Path

from ..clips.spec import ClipSpec
from ..synthetic import CLASSES
from .c3d import C3D
from .registry import register_model

# The weights that ship were trained at these sizes (benchmarks/train_demo.py).
WIDTH, HIDDEN = 8, 256


@register_model(
    "demo",
    summary="C3D of width 8, trained on synthetic clips: which of eight ways does the sprite move?",
    citation="topology of Tran et al. 2015, arXiv 1412.0767; trained by benchmarks/train_demo.py",
    classes=len(CLASSES),
    embedded=Path(__file__).with_name("demo.safetensors"),
    head="fc8.weight",
)
def demo(num_classes: int = len(CLASSES), spec: ClipSpec | None = None) -> C3D:
    """Return the demo model's network; its eight classes are those of ``selrel_zennit.synthetic.CLASSES``."""
    names = CLASSES if num_classes == len(CLASSES) else None
    return C3D(num_classes, width=WIDTH, hidden=HIDDEN, spec=spec, class_names=names)
