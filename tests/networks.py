"""Small networks and checks that several tests use."""

import torch
from torch import nn

from selrel_zennit import ClipSpec
from selrel_zennit.models.c3d import C3D


def small_c3d(num_classes=5, width=4, hidden=16, seed=0, size=16):
    """Return a C3D of small width on 16 frames of 16×16 pixels, with biases, in eval mode."""
    model = C3D(num_classes, width=width, hidden=hidden, spec=ClipSpec(short_side=size, crop=size))
    model.reset_parameters(seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return model.eval().requires_grad_(False)


def snapshot(model, clip):
    """Return what must not change: outputs, values and identity of the state, hooks of every module."""
    with torch.no_grad():
        outputs = model(clip).tolist()
    state = [(name, id(value), value.sum().item()) for name, value in model.named_parameters()]
    buffers = [(name, id(value), value.sum().item()) for name, value in model.named_buffers()]
    hooks = [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        for name, module in model.named_modules()
    ]
    return outputs, list(model.state_dict()), state, buffers, hooks, torch.is_grad_enabled()


class FewLayers(nn.Module):
    """C3D's kinds of layers, two of each: what a test of every method can afford."""

    cam_layer = "relu2"
    spec = ClipSpec(frames=8, short_side=16, crop=16)

    def __init__(self, num_classes=5):
        super().__init__()
        self.conv1 = nn.Conv3d(3, 4, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool3d((1, 2, 2))
        self.conv2 = nn.Conv3d(4, 6, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool3d(2, padding=(0, 1, 1))
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(6 * 4 * 5 * 5, 16)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(16, num_classes)

    def forward(self, clip):
        low = self.pool1(self.relu1(self.conv1(clip)))
        high = self.pool2(self.relu2(self.conv2(low)))
        return self.fc2(self.relu3(self.fc1(self.flatten(high))))


def few_layers():
    """Return a FewLayers with random weights, the same each time, in eval mode."""
    generator = torch.Generator().manual_seed(2)
    model = FewLayers()
    for parameter in model.parameters():
        fan = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 1
        parameter.data = torch.randn(parameter.shape, generator=generator) / fan**0.5
    return model.eval().requires_grad_(False)


def plain_network():
    """Return a FewLayers that names no layer for Grad-CAM."""
    model = few_layers()
    model.cam_layer = None
    return model
