"""A small network that is all right, its clip spec and frames: what tests make variants of."""

import numpy as np
import torch
from torch import nn

import selrel_zennit as sr

SPEC = sr.ClipSpec(frames=4, short_side=16, crop=16)
FRAMES = np.random.default_rng(3).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)


class Plain(nn.Module):
    """Two convolutions and a class layer: what the others are variants of."""

    spec, cam_layer, class_names = SPEC, "relu2", ["a", "b", "c", "d", "e"]

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv3d(3, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv3d(4, 6, 3, padding=1), nn.ReLU()
        self.pool, self.flat, self.fc = nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 5)

    def trunk(self, clip):
        return self.relu2(self.conv2(self.relu1(self.conv1(clip))))

    def forward(self, clip):
        return self.fc(self.flat(self.pool(self.trunk(clip))))


def made(build=Plain, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval().requires_grad_(False)


class Pair(Plain):
    def forward(self, clip):
        return super().forward(clip), clip


def inferred():
    with torch.inference_mode():
        return made()
