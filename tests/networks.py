"""Small networks and checks that several tests use."""

import torch

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
