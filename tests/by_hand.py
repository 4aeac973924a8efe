"""A small network, and its DTD derived by hand, in float64 and without Zennit.

z⁺ with the activations of the network, z^B in the first layer, biases dropped, pools in proportion; every divisor is
stabilised as Zennit stabilises it.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import selrel_zennit as sr

SPEC = sr.ClipSpec(frames=4, short_side=16, crop=16)
MEAN, STD = (110.0, 100.0, 90.0), (60.0, 55.0, 50.0)
RAW = sr.ClipSpec(frames=4, short_side=16, crop=16, mean=(0, 0, 0))
SCALED = sr.ClipSpec(frames=4, short_side=16, crop=16, mean=MEAN, std=STD)


class Network(nn.Module):
    """Two convolutions, an average pool and a class layer; its parts are what the others change."""

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv3d(3, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv3d(4, 6, 3, padding=1), nn.ReLU()
        self.pool, self.flat, self.fc = nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 5)
        self.spec, self.cam_layer = SPEC, "relu2"

    def trunk(self, clip):
        return self.relu2(self.conv2(self.relu1(self.conv1(clip))))

    def forward(self, clip):
        return self.fc(self.flat(self.pool(self.trunk(clip))))


def network(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().double().eval().requires_grad_(False)


def noise(spec=SPEC, seed=1, top=256):
    frames = np.random.default_rng(seed).integers(0, top, (1, spec.frames, spec.crop, spec.crop, 3), dtype=np.uint8)
    return torch.from_numpy(spec.from_pixels(frames)).double()


def stable(values):
    """Zennit adds 1e-6 to every divisor, away from zero."""
    return values + torch.where(values < 0, -1e-6, 1e-6)


def dtd_by_hand(plain, clip, target, spec=SPEC):
    """Return relevance [T,H,W] of a Network for one class."""
    w1, w2, w3 = plain.conv1.weight, plain.conv2.weight, plain.fc.weight[target].clamp(min=0)
    low1 = F.conv3d(clip, w1, plain.conv1.bias, padding=1).relu()
    low2 = F.conv3d(low1, w2, plain.conv2.bias, padding=1).relu()
    mean = low2.mean((2, 3, 4))
    at_pool = mean * w3 / stable(mean @ w3)
    relevance = low2 / low2[0, 0].numel() * (at_pool / stable(mean))[..., None, None, None]
    inputs = low1.clone().requires_grad_()
    z = F.conv3d(inputs, w2.clamp(min=0), padding=1)
    (down,) = torch.autograd.grad(z, inputs, relevance / stable(z))
    relevance = low1 * down
    return z_box(plain.conv1, [clip, *bounds(spec, clip)], relevance).sum(1)[0]


def bounds(spec, clip):
    return [torch.from_numpy(end.copy()).double().expand_as(clip) for end in spec.bounds()]


def z_box(layer, parts, relevance):
    """z^B of a convolution, from the clip, the least and the greatest one."""
    parts = [part.clone().requires_grad_() for part in parts]
    weights = (layer.weight, -layer.weight.clamp(min=0), -layer.weight.clamp(max=0))
    z = sum(F.conv3d(part, weight, padding=layer.padding) for part, weight in zip(parts, weights, strict=True))
    downs = torch.autograd.grad(z, parts, relevance / stable(z))
    return sum(part.detach() * down for part, down in zip(parts, downs, strict=True))


def assert_dtd(model, clip, plain, plain_clip=None, spec=SPEC):
    plain_clip = clip if plain_clip is None else plain_clip
    with torch.no_grad():
        torch.testing.assert_close(model(clip), plain(plain_clip), rtol=1e-9, atol=1e-9)
    explanation = sr.explain(model, clip, "dtd", 2)
    np.testing.assert_allclose(explanation.logits, plain(plain_clip), rtol=1e-5)
    expected = dtd_by_hand(plain, plain_clip, 2, spec).numpy()
    assert expected.sum() > 0.9
    assert np.linalg.norm(explanation.relevance[0] - expected) <= 1e-6 * np.linalg.norm(expected)
    assert explanation.unseen == ()


def with_statistics(norm, seed):
    generator = torch.Generator().manual_seed(seed)
    norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator) * 0.3)
    norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
    norm.weight.data = torch.randn(norm.weight.shape, generator=generator, dtype=torch.float64)
    norm.bias.data = torch.randn(norm.bias.shape, generator=generator, dtype=torch.float64) * 0.2
    norm.weight.data[0] = 0  # a dead channel, as network slimming leaves them
    norm.weight.data[1] = 1e-39


class Normed(Network):
    def __init__(self, norm=nn.BatchNorm3d):
        super().__init__()
        self.norm1, self.norm2 = norm(4), norm(6)

    def trunk(self, clip):
        return self.relu2(self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(clip))))))


class Context(Network):
    """[B,C,T,H,W] + [B,C,1,1,1], as global context blocks add."""

    expanded = False

    def __init__(self):
        super().__init__()
        self.context = nn.AdaptiveAvgPool3d(1)

    def trunk(self, clip):
        low = super().trunk(clip)
        around = self.context(low)
        return low + (around.expand_as(low) if self.expanded else around)
