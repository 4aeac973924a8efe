"""Pieces that random networks are made of: each can be written in several ways that compute the same."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from selrel_zennit.canonizers.gates import Gate


class Named(nn.Module):
    """A module whose printout says how it is written."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def extra_repr(self) -> str:
        return self.how


class ReLU(Named):
    """A ReLU that is no nn.ReLU."""

    def forward(self, x):
        if self.how == "functional":
            return functional.relu(x)
        if self.how == "in place":
            return functional.relu(x, inplace=True)
        if self.how == "torch":
            return torch.relu(x)
        if self.how == "method":
            return x.relu()
        return x.clamp(min=0)


class Called(Named):
    """A convolution called another way than by its name."""

    def __init__(self, how: str, conv: nn.Conv3d) -> None:
        super().__init__(how)
        self.conv = conv

    def forward(self, x):
        conv = self.conv
        if self.how == "forward":
            return conv.forward(x)
        if self.how == "twice":
            return conv(conv(x))
        return functional.conv3d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class Standardised(nn.Conv3d):
    """A convolution that standardises its weight in its own forward."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3, 4), keepdim=True)
        weight = weight / (weight.std((1, 2, 3, 4), keepdim=True) + 1e-5)
        return self._conv_forward(x, weight, self.bias)


class FrozenNorm(nn.Module):
    """A batch norm whose numbers are buffers, as detectors have them."""

    def __init__(self, norm: nn.BatchNorm3d) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1, 1) + shift.reshape(1, -1, 1, 1, 1)


class Residual(Named):
    """body(x) + shortcut(x)."""

    def __init__(self, how: str, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__(how)
        self.body, self.shortcut = body, shortcut

    def forward(self, x):
        first, second = self.body(x), self.shortcut(x)
        if self.how == "torch.add":
            return torch.add(first, second)
        if self.how == "+=":
            first += second
            return first
        if self.how == "method":
            return first.add(second)
        return first + second


class Concatenated(nn.Module):
    """Branches side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


class Broadcast(Named):
    """x plus something of its mean, the same at every place: a global context block."""

    def __init__(self, how: str, context: nn.Module) -> None:
        super().__init__(how)
        self.pool, self.context = nn.AdaptiveAvgPool3d(1), context

    def forward(self, x):
        context = self.context(self.pool(x))
        return x + (context.expand_as(x) if self.how == "expand_as" else context)


class Gated(Named):
    """x times a gate for each channel, made of its mean: squeeze and excitation."""

    def __init__(self, how: str, channels: int) -> None:
        super().__init__(how)
        self.pool, self.fc, self.gate = nn.AdaptiveAvgPool3d(1), nn.Conv3d(channels, channels, 1), Gate()

    def forward(self, x):
        gate = torch.sigmoid(self.fc(self.pool(x)))
        return self.gate(x, gate) if self.how == "Gate" else x * gate


class Pool(Named):
    """A pool that is called as a function."""

    def forward(self, x):
        if self.how == "max":
            return functional.max_pool3d(x, 2)
        if self.how == "average":
            return functional.avg_pool3d(x, 2)
        return functional.adaptive_avg_pool3d(x, (2, 3, 3))


class Pad(Named):
    """Zeros around the maps, by a function of its own."""

    def forward(self, x):
        return functional.pad(x, (1, 1, 1, 0, 0, 1))


class Constant(Named):
    """A fixed factor or shift: of all, of each channel, of each place."""

    def __init__(self, how: str, channels: int) -> None:
        super().__init__(how)
        self.register_buffer("values", torch.linspace(-0.8, 1.2, channels).reshape(1, -1, 1, 1, 1))

    def forward(self, x):
        if self.how == "negative":
            return x * -0.7
        if self.how == "each channel":
            return x * self.values
        if self.how == "mask":
            return x * (torch.arange(x.shape[3]) > 1).to(x).reshape(1, 1, 1, -1, 1)
        return (x - 0.1) / 1.5


class Activation(Named):
    """Activations that are no ReLUs, as functions."""

    def forward(self, x):
        if self.how == "leaky":
            return functional.leaky_relu(x, 0.1)
        if self.how == "sigmoid":
            return torch.sigmoid(x)
        return functional.silu(x) if self.how == "silu" else torch.tanh(x)


class Difference(nn.Module):
    """body(x) − x, shares in proportion with the second's sign turned."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x) - x


class Three(Named):
    """The sum of three tensors."""

    def __init__(self, how: str, first: nn.Module, second: nn.Module) -> None:
        super().__init__(how)
        self.first, self.second = first, second

    def forward(self, x):
        first, second = self.first(x), self.second(x)
        if self.how == "stack":
            return torch.stack([x, first, second]).sum(0)
        return sum([x, first, second]) if self.how == "sum" else x + first + second


class Split(nn.Module):
    """Half of the channels go through a body, the other half past it; then they are shuffled."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        first, second = x.chunk(2, 1)
        x = torch.cat([self.body(first), second], 1)
        return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class Pointwise(Named):
    """A linear layer over the channels of every place."""

    def __init__(self, how: str, inputs: int, outputs: int) -> None:
        super().__init__(how)
        self.fc = nn.Linear(inputs, outputs)

    def forward(self, x):
        x = x.movedim(1, -1)
        if self.how == "matmul":
            return (x @ self.fc.weight.T + self.fc.bias).movedim(-1, 1)
        return (self.fc(x) if self.how == "module" else functional.linear(x, self.fc.weight, self.fc.bias)).movedim(
            -1, 1
        )


class FunctionalNorm(nn.Module):
    """A batch norm whose module is not called."""

    def __init__(self, norm: nn.BatchNorm3d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x):
        norm = self.norm
        return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


class Folded(nn.Module):
    """A 2D convolution on every frame."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x):
        frames = self.conv(x.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class GlobalMean(Named):
    """The mean of each feature map, written in one of several ways: [B,C,T,H,W] to [B,C]."""

    def forward(self, x):
        if self.how == "mean":
            return x.mean((2, 3, 4))
        if self.how == "mean in steps":
            return x.mean(2).mean((2, 3))
        if self.how == "function":
            return functional.adaptive_avg_pool3d(x, 1).flatten(1)
        return x.flatten(2).sum(2) / (x.shape[2] * x.shape[3] * x.shape[4])


class Matrix(nn.Module):
    """A class layer that is a product of matrices."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class Scaled(Named):
    """(x − mean) ÷ std, or a plain scale and shift, inside the network."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.register_buffer("mean", torch.tensor([20.0, -10.0, 5.0]).reshape(1, 3, 1, 1, 1))
        self.register_buffer("std", torch.tensor([50.0, 60.0, 70.0]).reshape(1, 3, 1, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std if self.how == "mean and std" else x / 127.5 - 0.1


class TwoStems(nn.Module):
    """Two stems that both see the clip, side by side."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.second, self.first = second, first

    def forward(self, x):
        return torch.cat([self.first(x), self.second(x)], 1)


class Drawn(nn.Module):
    """A drawn network; ``kinds`` names what in it is out of the ordinary. ``late`` registers the stem last."""

    def __init__(self, stem: nn.Module, body: nn.Module, head: nn.Module, late: bool, spare: nn.Module | None) -> None:
        super().__init__()
        if not late:
            self.stem = stem
        self.body = body
        self.cam = nn.Identity()
        self.head = head
        if spare is not None:
            self.spare = spare
        if late:
            self.stem = stem
        self.cam_layer = "cam"
        self.kinds: list[str] = []

    def forward(self, x):
        return self.head(self.cam(self.body(self.stem(x))))
