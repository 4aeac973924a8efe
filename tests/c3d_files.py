"""State dicts with the keys and shapes of public C3D files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from selrel_zennit.errors import InputError

State = dict[str, torch.Tensor]

# Shapes of C3D by hand, from Tran et al. 2015: (module, shape of its weight).
C3D_SHAPES = {
    "conv1": (64, 3, 3, 3, 3),
    "conv2": (128, 64, 3, 3, 3),
    "conv3a": (256, 128, 3, 3, 3),
    "conv3b": (256, 256, 3, 3, 3),
    "conv4a": (512, 256, 3, 3, 3),
    "conv4b": (512, 512, 3, 3, 3),
    "conv5a": (512, 512, 3, 3, 3),
    "conv5b": (512, 512, 3, 3, 3),
    "fc6": (4096, 8192),
    "fc7": (4096, 4096),
    "fc8": (101, 4096),
}
OWN = list(C3D_SHAPES)

# The modules of the public files, in the network's order, written out.
FEATURES = [
    "features.0",
    "features.3",
    "features.6",
    "features.8",
    "features.11",
    "features.13",
    "features.16",
    "features.18",
]
CLASSIFIER = ["classifier.0", "classifier.3", "classifier.6"]
MMACTION2 = [f"backbone.conv{name}.conv" for name in ["1a", "2a", "3a", "3b", "4a", "4b", "5a", "5b"]] + [
    "backbone.fc6",
    "backbone.fc7",
    "cls_head.fc_cls",
]
BLOCKS = [
    "layer1.0",
    "layer2.0",
    "layer3.0",
    "layer3.2",
    "layer4.0",
    "layer4.2",
    "layer5.0",
    "layer5.2",
    "fc6",
    "fc7",
    "fc8",
]


def tiny(modules: list[str], classes: int = 101) -> State:
    """A state dict with these modules and small tensors, each with a value of its own: 1, 2, 3…"""
    state: State = {}
    for number, module in enumerate(modules, start=1):
        rows = classes if number == len(OWN) else 2
        state[f"{module}.weight"] = torch.full((rows, 3), float(number))
        state[f"{module}.bias"] = torch.full((rows,), -float(number))
    return state


def full(classes: int = 101, device: str = "cpu") -> State:
    """A state dict of C3D's real shapes that takes no memory: one number, expanded, or none at all on ``meta``."""
    state: State = {}
    for module, shape in C3D_SHAPES.items():
        shape = (classes, *shape[1:]) if module == "fc8" else shape
        state[f"{module}.weight"] = torch.zeros((), device=device).expand(shape)
        state[f"{module}.bias"] = torch.zeros((), device=device).expand(shape[:1])
    return state


def error_of(call: Callable[[], Any], *parts: str) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message
