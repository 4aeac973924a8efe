"""Random video networks, drawn from a grammar by a seed: small, in float64, in eval mode, with a clip each.

A plain network has standard kinds alone, all as modules: convolutions of all sorts, healthy batch norms, residual sums,
branches side by side, pools, usual heads. Others have one to three ``kinds`` besides, which the draw names.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from selrel_zennit import ClipSpec

from . import blocks

CLASSES = 5
PLAIN_SHARE = 0.25

NORM_KINDS = (
    *("dead norm", "tiny norm", "negative norm", "sync norm", "frozen norm", "norm without parameters"),
    "functional norm",
)
WEIGHT_KINDS = ("weight_norm", "old weight_norm", "spectral_norm", "old spectral_norm", "pruned", "standardised weight")
CALL_KINDS = ("called by forward", "called twice", "functional convolution", "shared weight")
OTHER_KINDS = (
    *("functional ReLU", "ReLU6", "functional pool", "functional mean", "broadcast sum", "broadcast by expand_as"),
    *("Gate", "plain gate", "norm at the input", "scaled in forward", "two stems", "stem registered last"),
    *("spare head", "in-place sum", "norm between pools", "folded 2D convolution"),
    *("padding of its own", "fixed factor", "other activation", "difference", "sum of three", "split and shuffled"),
    *("linear over channels", "pool before the stem", "matrix head", "norm in the head"),
)
KINDS = NORM_KINDS + WEIGHT_KINDS + CALL_KINDS + OTHER_KINDS


@dataclass
class Draw:
    """One network with its clip [1,3,T,H,W], float64, and a class to explain; ``kinds`` is empty for a plain one."""

    seed: int
    model: blocks.Drawn
    clip: torch.Tensor
    target: int
    kinds: tuple[str, ...]


def draw(seed: int, kinds: tuple[str, ...] | None = None) -> Draw:
    """Return the network of a seed; ``kinds`` asks for these instead of drawn ones."""
    chance = random.Random(seed)
    if kinds is None:
        number = 0 if chance.random() < PLAIN_SHARE else chance.choice((1, 1, 1, 2, 2, 2, 3, 3))
        kinds = tuple(sorted(chance.sample(KINDS, number)))
    with torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of "same" padding with even kernels, and of the old weight_norm
        torch.manual_seed(seed)
        builder = _Builder(chance, kinds)
        clip = builder.clip()
        model = builder.network(clip.shape[2:]).eval()
        # Mostly the top class: of another one, often nothing speaks for it, and a map of zeros tests little.
        target = int(model(clip).argmax()) if chance.random() < 0.8 else chance.randrange(CLASSES)
    model.spec = builder.spec
    model.kinds = list(kinds)
    return Draw(seed, model.double().requires_grad_(True), clip.double(), target, kinds)


class _Builder:
    """Builds one network; ``todo`` are the kinds that have not been built yet."""

    def __init__(self, chance: random.Random, kinds: tuple[str, ...]) -> None:
        self.chance, self.kinds, self.todo = chance, kinds, set(kinds)
        side = chance.randrange(12, 21)
        scaled = "scaled in forward" in kinds or chance.random() < 0.3
        unit = {"value_range": (0.0, 1.0), "mean": (0.43, 0.4, 0.38), "std": (0.23, 0.22, 0.2)}
        self.spec = ClipSpec(frames=chance.randrange(4, 9), short_side=side, crop=side, **({} if scaled else unit))
        # Half of all convolutions of some networks, so that others can be compiled, which knows zeros alone.
        self.modes = (
            ("zeros",) if chance.random() < 0.7 else ("zeros", "zeros", "zeros", "replicate", "reflect", "circular")
        )
        self.hurry = False  # what is left to do is done at the next chance, else at every second one

    def clip(self) -> torch.Tensor:
        """Return noise, noise with a flat region and repeated frames, or a moving square before a flat ground."""
        numbers = np.random.default_rng(self.chance.randrange(2**31))
        shape = (self.spec.frames, self.spec.crop, self.spec.crop, 3)
        frames = numbers.integers(0, 256, shape, dtype=np.uint8)
        look = self.chance.choice(("noise", "flat and repeated", "square"))
        if look == "flat and repeated":
            frames[:, :, : self.spec.crop // 2] = numbers.integers(0, 256, 3, dtype=np.uint8)
            frames[1::2] = frames[::2][: len(frames[1::2])]
        elif look == "square":
            square = frames[0, :5, :5].copy()
            frames[:] = numbers.integers(0, 256, 3, dtype=np.uint8)
            for step, frame in enumerate(frames):
                frame[3:8, step : step + 5] = square
        return torch.from_numpy(self.spec.from_pixels(frames[None]))

    def network(self, size: torch.Size) -> blocks.Drawn:
        """Return a network for clips of this size."""
        chance, width = self.chance, self.chance.choice((4, 6, 8))
        x = torch.rand(1, 3, *size)
        before: list[nn.Module] = []
        if self.has("scaled in forward"):
            before.append(blocks.Scaled(chance.choice(("mean and std", "scale and shift"))))
        if self.has("pool before the stem"):
            before.append(chance.choice((nn.AvgPool3d((1, 2, 2)), nn.MaxPool3d((1, 2, 2)))))
        if self.has("norm at the input"):
            before.append(self.plain_norm(3))
        stem: nn.Module = self.unit(3, width)
        if self.has("two stems"):
            stem = blocks.TwoStems(self.conv3d(3, width, stride=1), self.conv3d(3, width, stride=1))
            stem, width = nn.Sequential(stem, self.relu()), 2 * width
        stem = nn.Sequential(*before, stem)
        x = _run(stem, x)
        body: list[nn.Module] = []
        for _ in range(10):
            if len(body) >= chance.choice((2, 3, 4)) and not self.todo & set(_BLOCKS):
                break
            block = self.block(x.shape[1])
            try:
                made = _run(block, x)
            except RuntimeError:  # the maps have grown too small for it
                continue
            if min(made.shape[2:]) >= 1 and made.numel() > 0:
                body.append(block)
                x = made
        self.hurry = True
        while self.todo & {*NORM_KINDS, *WEIGHT_KINDS, *CALL_KINDS, "functional ReLU", "ReLU6"}:
            body.append(self.unit(x.shape[1], x.shape[1], stride=1))
            x = _run(body[-1], x)
        body.append(nn.ReLU())  # not in place: what stands before it may be a ReLU, whose output autograd keeps
        head = self.head(x.shape[1])
        spare = nn.Linear(x.shape[1], CLASSES) if self.has("spare head") else None
        return blocks.Drawn(stem, nn.Sequential(*body), head, self.has("stem registered last"), spare)

    def has(self, kind: str) -> bool:
        """Say whether the network is to have a kind, and note that it does now."""
        self.todo.discard(kind)
        return kind in self.kinds

    def first_of(self, kinds: tuple[str, ...]) -> str | None:
        """Return one of these kinds that is still to be built, or now and then one that has been."""
        left = [kind for kind in kinds if kind in self.todo and (self.hurry or self.chance.random() < 0.5)]
        again = [kind for kind in kinds if kind in self.kinds]
        if left or (again and self.chance.random() < 0.3):
            kind = self.chance.choice(left or again)
            self.todo.discard(kind)
            return kind
        return None

    def conv3d(self, inputs: int, outputs: int, stride: int | None = None, maker: type = nn.Conv3d) -> nn.Conv3d:
        """Return a convolution: kernel, stride, padding and its mode, dilation, groups, bias drawn."""
        chance = self.chance
        kernel = chance.choice(((1, 3, 3), (3, 3, 3), (3, 1, 1), (1, 1, 1), (2, 3, 3), (3, 3, 3)))
        dilation = chance.choice((1, 1, 1, 2)) if max(kernel) > 1 else 1
        padding: tuple[int, ...] | str = tuple(dilation * (one // 2) for one in kernel)
        if stride == 1 and (2 in kernel or chance.random() < 0.2):
            padding = "same"
        conv: nn.Conv3d = maker(
            inputs,
            outputs,
            kernel,
            stride=chance.choice((1, 1, (1, 2, 2))) if stride is None else stride,
            padding=padding,
            dilation=dilation,
            groups=chance.choice((1, 1, 1, 2)) if inputs % 2 == outputs % 2 == 0 else 1,
            bias=chance.random() < 0.6,
            padding_mode=chance.choice(self.modes),
        )
        if conv.bias is not None:
            conv.bias.normal_(0, 0.3)
        return conv

    def convolution(self, inputs: int, outputs: int, stride: int | None = None) -> nn.Module:
        """Return a convolution, its weight or its call of another kind now and then."""
        kind = self.first_of(WEIGHT_KINDS)
        if kind == "standardised weight":
            return self.conv3d(inputs, outputs, stride, blocks.Standardised)
        call = None if kind else self.first_of(CALL_KINDS)
        if call in ("called twice", "shared weight") and inputs != outputs:
            self.todo.add(call)
            call = None
        if call == "called twice":
            return blocks.Called("twice", self.conv3d(inputs, outputs, 1))
        conv = self.conv3d(inputs, outputs, 1 if call == "shared weight" else stride)
        if kind is not None:
            return _WEIGHTS[kind](conv)
        if call == "called by forward":
            return blocks.Called("forward", conv)
        if call == "functional convolution":
            conv.padding_mode = "zeros"
            return blocks.Called("function", conv)
        if call == "shared weight":
            other = nn.Conv3d(inputs, outputs, conv.kernel_size, padding="same", groups=conv.groups, bias=True)
            other.weight = conv.weight
            return nn.Sequential(conv, self.relu(), other)
        return conv

    def norm(self, channels: int) -> nn.Module:
        """Return a batch norm as after training, or one of the kinds."""
        norm, kind = self.plain_norm(channels), self.first_of(NORM_KINDS)
        if kind == "dead norm":
            norm.weight[: max(channels // 3, 1)] = 0
        elif kind == "tiny norm":
            norm.weight[: max(channels // 3, 1)] = self.chance.choice((1e-39, 1e-20, 1e-8))
        elif kind == "negative norm":
            norm.weight[::2] *= -1
        elif kind == "sync norm":
            sync = nn.SyncBatchNorm(channels)
            sync.load_state_dict(norm.state_dict())
            return sync
        elif kind == "frozen norm":
            return blocks.FrozenNorm(norm)
        elif kind == "functional norm":
            return blocks.FunctionalNorm(norm)
        elif kind == "norm without parameters":
            bare = nn.BatchNorm3d(channels, affine=False, eps=1e-3)
            bare.running_mean.copy_(norm.running_mean)
            bare.running_var.copy_(norm.running_var)
            return bare
        return norm

    def plain_norm(self, channels: int) -> nn.BatchNorm3d:
        """Return a batch norm as after training."""
        norm = nn.BatchNorm3d(channels)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.3)
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.3, 2.0)
        return norm

    def relu(self) -> nn.Module:
        """Return a ReLU."""
        kind = self.first_of(("functional ReLU", "ReLU6"))
        if kind == "functional ReLU":
            return blocks.ReLU(self.chance.choice(("functional", "in place", "torch", "method", "clamp")))
        return nn.ReLU6() if kind == "ReLU6" else nn.ReLU(inplace=self.chance.random() < 0.3)

    def unit(self, inputs: int, outputs: int, stride: int | None = None) -> nn.Sequential:
        """Return a convolution with ReLU and perhaps a batch norm, in one of the usual orders."""
        orders = ["conv relu", "conv norm relu", "conv norm relu", "norm conv relu", "norm relu conv", "conv relu norm"]
        if inputs == 3:
            orders = orders[:3]
        needs_norm = self.todo & set(NORM_KINDS)
        order = self.chance.choice([one for one in orders if "norm" in one] if needs_norm else orders)
        made: list[nn.Module] = []
        channels = inputs
        for part in order.split():
            if part == "conv":
                made.append(self.convolution(inputs, outputs, stride))
                channels = outputs
            else:
                made.append(self.norm(channels) if part == "norm" else self.relu())
        return nn.Sequential(*made)

    def block(self, channels: int) -> nn.Module:
        """Return the next block of the body, of a kind that is still to be built or of a plain one."""
        left = [kind for kind in _BLOCKS if kind in self.todo]
        if left:
            kind = self.chance.choice(left)
            self.todo.discard(kind)
            return _BLOCKS[kind](self, channels)
        return self.chance.choice((_unit, _unit, _residual, _residual, _branches, _pool, _dropout))(self, channels)

    def head(self, channels: int) -> nn.Module:
        """Return what makes logits of feature maps."""
        functional = self.has("functional mean")
        how = self.chance.choice(("mean", "mean in steps", "function", "sum"))
        mean = blocks.GlobalMean(how) if functional else nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten())
        kind = self.chance.choice(("linear", "linear", "hidden", "convolution", "mean of maps", "flat maps"))
        if self.has("matrix head"):
            return nn.Sequential(mean, blocks.Matrix(channels, CLASSES))
        if kind == "hidden" or "norm in the head" in self.kinds:
            hidden: nn.Module = nn.Linear(channels, 8)
            if self.has("norm in the head"):
                flat = nn.BatchNorm1d(8)
                flat.load_state_dict(self.plain_norm(8).state_dict())
                hidden = nn.Sequential(hidden, flat)
            return nn.Sequential(mean, hidden, self.relu(), nn.Dropout(), nn.Linear(8, CLASSES))
        if kind == "convolution":
            pool = nn.AdaptiveAvgPool3d(1)
            return nn.Sequential(pool, nn.Dropout(), nn.Conv3d(channels, CLASSES, 1), nn.Flatten())
        if kind == "mean of maps":
            return nn.Sequential(nn.Conv3d(channels, CLASSES, 1), mean)
        if kind == "flat maps" and not functional:
            return nn.Sequential(nn.AdaptiveAvgPool3d((1, 2, 2)), nn.Flatten(), nn.Linear(4 * channels, CLASSES))
        return nn.Sequential(mean, nn.Linear(channels, CLASSES))


def _unit(builder: _Builder, channels: int) -> nn.Module:
    return builder.unit(channels, builder.chance.choice((channels, 6, 8)))


def _residual(builder: _Builder, channels: int) -> nn.Module:
    outputs = builder.chance.choice((channels, channels, 8))
    first = builder.unit(channels, outputs, stride=1)
    body = nn.Sequential(first, nn.Conv3d(outputs, outputs, 3, padding=1), builder.plain_norm(outputs))
    shortcut: nn.Module = nn.Identity()
    if outputs != channels:
        shortcut = nn.Sequential(nn.Conv3d(channels, outputs, 1), builder.plain_norm(outputs))
    how = "+=" if builder.has("in-place sum") else builder.chance.choice(("+", "torch.add", "method"))
    return nn.Sequential(blocks.Residual(how, body, shortcut), builder.relu())


def _branches(builder: _Builder, channels: int) -> nn.Module:
    pooled = nn.Sequential(nn.MaxPool3d(3, 1, 1), nn.Conv3d(channels, 4, 1), nn.ReLU())
    return blocks.Concatenated(builder.unit(channels, 4, stride=1), pooled)


def _pool(builder: _Builder, channels: int) -> nn.Module:
    make: Callable[[], nn.Module] = builder.chance.choice(
        (
            lambda: nn.MaxPool3d(2),
            lambda: nn.MaxPool3d(3, 2, 1),
            lambda: nn.MaxPool3d((1, 3, 3), (1, 2, 2), ceil_mode=True),
            lambda: nn.AvgPool3d(2),
            lambda: nn.AvgPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1), count_include_pad=False),
            lambda: nn.AvgPool3d(3, 2, 1, ceil_mode=True),
            lambda: nn.AdaptiveAvgPool3d((2, 3, 3)),
            lambda: nn.AdaptiveMaxPool3d((2, 3, 3)),
        )
    )
    return make()


def _dropout(builder: _Builder, channels: int) -> nn.Module:
    return nn.Sequential(nn.Dropout3d(), builder.unit(channels, channels, stride=1))


def _between_pools(builder: _Builder, channels: int) -> nn.Module:
    return nn.Sequential(nn.MaxPool3d(2, 1), builder.norm(channels), nn.AvgPool3d(2, 1))


# Kinds that are blocks of the body.
_BLOCKS: dict[str, Callable[[_Builder, int], nn.Module]] = {
    "functional pool": lambda b, c: blocks.Pool(b.chance.choice(("max", "average", "adaptive"))),
    "broadcast sum": lambda b, c: blocks.Broadcast("plain", nn.Conv3d(c, c, 1)),
    "broadcast by expand_as": lambda b, c: blocks.Broadcast("expand_as", nn.Conv3d(c, c, 1)),
    "Gate": lambda b, c: blocks.Gated("Gate", c),
    "plain gate": lambda b, c: blocks.Gated("plain", c),
    "in-place sum": _residual,
    "norm between pools": _between_pools,
    "padding of its own": lambda b, c: nn.Sequential(blocks.Pad("zeros"), nn.Conv3d(c, 6, 3), nn.ReLU()),
    "fixed factor": lambda b, c: blocks.Constant(b.chance.choice(("negative", "each channel", "mask", "shift")), c),
    "other activation": lambda b, c: nn.Sequential(
        nn.Conv3d(c, c, 1), blocks.Activation(b.chance.choice(("leaky", "sigmoid", "silu", "tanh")))
    ),
    "difference": lambda b, c: blocks.Difference(b.unit(c, c, stride=1)),
    "sum of three": lambda b, c: blocks.Three(
        b.chance.choice(("+", "sum", "stack")), b.unit(c, c, stride=1), nn.Conv3d(c, c, 1)
    ),
    "split and shuffled": lambda b, c: (
        blocks.Split(nn.Sequential(nn.Conv3d(c // 2, c // 2, 3, padding=1), nn.ReLU())) if c % 2 == 0 else nn.Identity()
    ),
    "linear over channels": lambda b, c: nn.Sequential(
        blocks.Pointwise(b.chance.choice(("module", "function", "matmul")), c, 6), nn.ReLU()
    ),
    "folded 2D convolution": lambda b, c: nn.Sequential(blocks.Folded(nn.Conv2d(c, 6, 3, padding=1)), nn.ReLU()),
}

_WEIGHTS: dict[str, Callable[[nn.Conv3d], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "old weight_norm": nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda conv: prune.random_unstructured(conv, "weight", 0.4),
}


def _run(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return what a module under construction makes of a batch; batch norms as in eval mode."""
    made: torch.Tensor = module.eval()(x.clone())
    return made
