"""A residual network with batch norms, and the same network written for Zennit by hand: merged, sums as modules."""

import copy

import torch
from torch import nn
from zennit.layer import Sum

from selrel_zennit import ClipSpec


class Block(nn.Module):
    """Two layers around which the input goes."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.norm(self.conv(x))
        y += x
        return self.relu(y)


class Residual(nn.Module):
    """A stem and a container of two blocks."""

    spec = ClipSpec(frames=4, short_side=8, crop=8, value_range=(0, 1), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(Block(4), Block(4))
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4, 5)

    def forward(self, clip):
        return self.fc(self.flatten(self.pool(self.layer1(self.relu(self.norm(self.conv(clip)))))))


class MergedBlock(nn.Module):
    """A block whose batch norm is in the convolution, and whose addition is Zennit's Sum."""

    def __init__(self, block):
        super().__init__()
        self.conv = merged(block.conv, block.norm)
        self.sum = Sum()
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.sum(torch.stack([self.conv(x), x], dim=-1)))


def merged(conv, norm):
    """Return the convolution that a convolution and a batch norm in eval mode are together."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    one = nn.Conv3d(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding).to(conv.weight)
    one.weight.data = conv.weight * scale[:, None, None, None, None]
    bias = 0 if conv.bias is None else conv.bias
    one.bias.data = (bias - norm.running_mean) * scale + norm.bias
    return one


def residual(seed=0):
    """Return a Residual with random weights and statistics, float64, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    model = Residual().double()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.data = drawn.abs() + 0.5 if name.endswith("running_var") else drawn / value[0].numel() ** 0.5
    return model.eval().requires_grad_(False)


def by_hand(model):
    """Return the network that a Residual is, for Zennit as it is: plain layers and Sums, in the order they run."""
    model = copy.deepcopy(model)
    return (
        nn.Sequential(
            merged(model.conv, model.norm),
            nn.ReLU(),
            nn.Sequential(*map(MergedBlock, model.layer1)),
            model.pool,
            model.flatten,
            model.fc,
        )
        .eval()
        .requires_grad_(False)
    )
