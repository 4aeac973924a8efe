"""The networks of hand_placed.py with more than convolutions and sums: X3D-S, ResNet-50 with shifts, with an LSTM.

ResNet-50 is torchvision's, of 2D convolutions on frames. The product with a gate and the LSTM, for which Zennit has no
rule, get theirs from the papers' equations; nothing is taken from selrel_zennit.

Sources: Feichtenhofer 2020, arXiv 2004.04730; Lin et al. 2019, arXiv 1811.08383; for relevance Arras et al. 2017,
arXiv 1706.07206.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from hand_placed_parts import Residual, merged
from torch import nn
from zennit.core import Hook

# What Zennit adds to the size of a denominator.
EPSILON = 1e-6


def reference(name: str, model: Any) -> tuple[nn.Module, str]:
    """Return the network written down once more, and the name of its CAM layer there."""
    if name == "x3d_s":
        return _x3d(model)
    frames = _frames(model, model.spec.frames, shift=name == "tsm_resnet50")
    if name == "tsm_resnet50":
        return nn.Sequential(*frames, nn.AdaptiveAvgPool3d(1), nn.Flatten(), copy.deepcopy(model.fc)), "8"
    ends = [nn.AdaptiveAvgPool3d((None, 1, 1)), nn.Flatten(2), Recurrence(model.lstm), copy.deepcopy(model.fc)]
    return nn.Sequential(*frames, *ends), "8"


def _frames(model: Any, frames: int, shift: bool) -> list[nn.Module]:
    """Return ResNet-50 up to its last block: clip [B,3,T,H,W] → [B,2048,T,H/32,W/32]."""
    layers = [nn.Sequential() for _ in range(4)]
    for number, layer in enumerate(layers, 1):
        for index, block in enumerate(getattr(model, f"layer{number}")):
            if isinstance(block, nn.Identity):
                continue
            stride = 2 if number > 1 and index == 0 else 1
            branch = [
                Shift(frames) if shift else nn.Identity(),
                _of_frames(block.conv1, block.bn1),
                nn.ReLU(),
                _of_frames(block.conv2, block.bn2, stride),
                nn.ReLU(),
                _of_frames(block.conv3, block.bn3),
            ]
            around = _of_frames(*block.downsample, stride) if index == 0 else nn.Identity()
            layer.append(Residual(branch, around))
    start = [Apart(), _of_frames(model.conv1, model.bn1, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return [*start, *layers, Together(frames)]


def _of_frames(convolution: Any, norm: Any, stride: int = 1) -> nn.Module:
    """Return the 2D convolution of each frame, centred, with the batch norm behind it inside."""
    weight = convolution.weight.squeeze(2)
    outputs, inputs, width, _ = weight.shape
    made = nn.Conv2d(inputs, outputs, width, stride, padding=width // 2, bias=False)
    made.weight = nn.Parameter(weight, requires_grad=False)
    return merged(made, norm)


class Apart(nn.Module):
    """[B,C,T,H,W] → [B·T,C,H,W]."""

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Return the frames."""
        return clip.transpose(1, 2).flatten(0, 1)


class Together(nn.Module):
    """[B·T,C,H,W] → [B,C,T,H,W]."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the clip."""
        return values.unflatten(0, (-1, self.frames)).transpose(1, 2)


class Shift(nn.Module):
    """Of frames [B·T,C,H,W]: an eighth of the channels comes from the frame behind, another from the one in front."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the frames shifted, with zeros where nothing comes from."""
        frames = values.unflatten(0, (-1, self.frames))
        eighth = frames.shape[2] // 8
        from_behind, from_front, still = frames.split((eighth, eighth, frames.shape[2] - 2 * eighth), 2)
        nothing = torch.zeros_like(from_behind[:, :1])
        from_behind = torch.cat([from_behind[:, 1:], nothing], 1)
        from_front = torch.cat([nothing, from_front[:, :-1]], 1)
        return torch.cat([from_behind, from_front, still], 2).flatten(0, 1)


class Recurrence(nn.Module):
    """An LSTM of one layer by its equations: [B,C,T] → the hidden state of the last step, [B,H]."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.of_input, self.of_hidden = lstm.weight_ih_l0.detach(), lstm.weight_hh_l0.detach()
        self.bias = lstm.bias_ih_l0.detach() + lstm.bias_hh_l0.detach()
        self.hidden = lstm.hidden_size

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the last hidden state."""
        return self.steps(values)[-1][-1]

    def steps(self, values: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        """Return of each step: the hidden state before, what the cell keeps, what it takes, the hidden state after."""
        hidden = cell = values.new_zeros(len(values), self.hidden)
        found = []
        for value in values.unbind(2):
            take, keep, candidate, show = (value @ self.of_input.T + hidden @ self.of_hidden.T + self.bias).chunk(4, 1)
            before, kept, taken = hidden, keep.sigmoid() * cell, take.sigmoid() * candidate.tanh()
            cell = kept + taken
            hidden = show.sigmoid() * cell.tanh()
            found.append((before, kept, taken, hidden))
        return found

    def rule(self, method: str) -> Hook:
        """Return the rule of a method: z⁺ for the candidates in DTD, else ε, as for linear layers."""
        return CandidatesAndCells(plus=method.startswith("dtd"))


class CandidatesAndCells(Hook):
    """Relevance through an LSTM, from its last hidden state back to the input of every step; the gates get none.

    The cell's relevance is shared by what it kept and what it took, in proportion; what it took goes to the input and
    the hidden state that the candidate was made of, by ε with the bias or by z⁺ without.
    """

    def __init__(self, plus: bool) -> None:
        super().__init__()
        self.plus = plus

    def copy(self) -> CandidatesAndCells:
        """Return a hook for another module."""
        return type(self)(self.plus)

    def forward(self, module: nn.Module, input: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Keep the input."""
        self.stored_tensors["input"] = input[0]

    @torch.no_grad()
    def backward(self, module: Any, grad_input: Any, grad_output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        """Return the relevance of the input, [B,C,T]."""
        values = self.stored_tensors["input"]
        candidate = slice(2 * module.hidden, 3 * module.hidden)
        weights, bias = (module.of_input[candidate], module.of_hidden[candidate]), module.bias[candidate]
        to_hidden, to_cell, found = grad_output[0], torch.zeros_like(grad_output[0]), []
        for value, (before, kept, taken, _) in zip(
            reversed(values.unbind(2)), reversed(module.steps(values)), strict=True
        ):
            shared = (to_cell + to_hidden) / _away_from_zero(kept + taken)
            to_value, to_hidden = self.shared((value, before), weights, bias, shared * taken)
            to_cell = shared * kept
            found.append(to_value)
        return (torch.stack(found[::-1], 2),)

    def shared(self, inputs: Any, weights: Any, bias: torch.Tensor, relevance: torch.Tensor) -> list[torch.Tensor]:
        """Return the shares of two inputs in a linear layer of both: Σ_i x_j w_ij R_i ÷ Σ_k x_k w_ik."""
        if not self.plus:
            denominator = bias + sum(x @ w.T for x, w in zip(inputs, weights, strict=True))
            return [x * (relevance / _away_from_zero(denominator) @ w) for x, w in zip(inputs, weights, strict=True)]
        # Positive products are those of factors with one sign.
        pairs = [(x.clamp(min=0), w.clamp(min=0)) for x, w in zip(inputs, weights, strict=True)]
        pairs += [(x.clamp(max=0), w.clamp(max=0)) for x, w in zip(inputs, weights, strict=True)]
        share = relevance / _away_from_zero(sum(x @ w.T for x, w in pairs))
        parts = [x * (share @ w) for x, w in pairs]
        return [parts[0] + parts[2], parts[1] + parts[3]]


def _away_from_zero(values: Any) -> torch.Tensor:
    """Return Zennit's denominator: larger by ε, with its sign."""
    return values + torch.where(values < 0, -EPSILON, EPSILON)


def _x3d(model: Any) -> tuple[nn.Module, str]:
    stem, *stages, head = model.blocks
    start = [copy.deepcopy(stem.conv.conv_t), merged(stem.conv.conv_xy, stem.norm), nn.ReLU()]
    layers = [nn.Sequential(*map(_block_of_x3d, stage.res_blocks)) for stage in stages]
    end = [merged(head.pool.pre_conv, head.pool.pre_norm), nn.ReLU(), nn.AdaptiveAvgPool3d(1)]
    end += [copy.deepcopy(head.pool.post_conv), nn.ReLU(), nn.Flatten(), copy.deepcopy(head.proj)]
    return nn.Sequential(*start, *layers, *end), "6"


def _block_of_x3d(block: Any) -> nn.Module:
    if isinstance(block, nn.Identity):
        return block
    branch, around = block.branch2, copy.deepcopy(block.branch1_conv)
    norm, squeeze = branch.norm_b
    layers = [merged(branch.conv_a, branch.norm_a), nn.ReLU(), merged(branch.conv_b, norm)]
    if not isinstance(squeeze, nn.Identity):
        layers.append(Squeezed(squeeze.block[0], squeeze.block[2]))
    layers += [nn.SiLU(), merged(branch.conv_c, branch.norm_c)]
    return Residual(
        layers, around if isinstance(block.branch1_norm, nn.Identity) else merged(around, block.branch1_norm)
    )


class Squeezed(nn.Module):
    """Values times a factor in 0…1 for each channel, made of the channels' means."""

    def __init__(self, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.down, self.relu, self.up = copy.deepcopy(down), nn.ReLU(), copy.deepcopy(up)
        self.product = Product()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return [B,C,T,H,W]."""
        means = values.mean((2, 3, 4), keepdim=True)
        return self.product(values, self.up(self.relu(self.down(means))).sigmoid())


class Product(nn.Module):
    """A signal times a gate."""

    def forward(self, signal: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Return the product."""
        return signal * gate

    def rule(self, method: str) -> Hook:
        """Return the rule, whatever the method."""
        return SignalTakesAll()


class SignalTakesAll(Hook):
    """The relevance of a product is that of its signal; its gate has none."""

    def backward(self, module: Any, grad_input: Any, grad_output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Return the relevance of both."""
        return grad_output[0], torch.zeros_like(grad_input[1])
