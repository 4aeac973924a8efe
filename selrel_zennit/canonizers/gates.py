"""Gates under rules: a product of a signal and a gate hands all of its relevance to the signal.

So LRP treats the products of an LSTM (Arras et al. 2017, arXiv 1706.07206, "signal takes all"); squeeze-and-excitation
is the same product with a gate for each channel. The gate counts as a constant of the clip.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence
from zennit.canonizers import Canonizer
from zennit.layer import Sum

from ..errors import InputError
from ..network.dry_run import dry_run


class Gate(nn.Module):
    """A signal times a gate. Its gradient is the product's; under GateCanonizer its relevance is the signal's alone."""

    def forward(self, signal: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Return signal · gate."""
        return signal * gate


class _SignalTakesAll(torch.autograd.Function):
    """The product of a signal and a gate of its shape, or one that broadcasts to it; relevance goes to the signal."""

    @staticmethod
    def forward(ctx: Any, signal: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return signal * gate

    @staticmethod
    def backward(ctx: Any, relevance: torch.Tensor) -> tuple[torch.Tensor, None]:
        return relevance, None


def _product(signal: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = _SignalTakesAll.apply(signal, gate.detach())
    return product


class GateCanonizer(Canonizer):
    """Makes every Gate hand its relevance to the signal, none to the gate. Its value stays what it is."""

    def __init__(self) -> None:
        self.module: nn.Module | None = None

    def apply(self, root_module: nn.Module) -> list[Canonizer]:
        """Change all gates; return what undoes it."""
        instances: list[Canonizer] = []
        for module in root_module.modules():
            if isinstance(module, Gate) and "forward" not in vars(module):
                instance = GateCanonizer()
                instance.register(module)
                instances.append(instance)
        return instances

    def register(self, module: nn.Module) -> None:
        """Change one gate."""
        self.module = module
        object.__setattr__(module, "forward", _product)

    def remove(self) -> None:
        """Give the gate its own forward back."""
        if self.module is not None:
            object.__delattr__(self.module, "forward")
            self.module = None


class _SignalGate(Gate):
    """A gate whose relevance is the signal's from the start."""

    def forward(self, signal: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return _product(signal, gate)


class Step(nn.Module):
    """One step of an LSTM, in modules that rules can see: the candidate is a linear layer, the cell's update a Sum."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        # In the order of nn.LSTM: input gate, forget gate, candidate, output gate.
        self.weights = weight.detach().chunk(4)
        self.biases = (None,) * 4 if bias is None else bias.detach().chunk(4)
        outputs, inputs = self.weights[2].shape
        self.candidate = nn.Linear(inputs, outputs, bias is not None, device="meta")
        self.candidate.weight = nn.Parameter(self.weights[2], requires_grad=False)
        if self.biases[2] is not None:
            self.candidate.bias = nn.Parameter(self.biases[2], requires_grad=False)
        self.squashed_candidate, self.squashed_cell = nn.Tanh(), nn.Tanh()
        self.kept, self.taken, self.shown = _SignalGate(), _SignalGate(), _SignalGate()
        self.sum = Sum()

    def forward(
        self, input: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the hidden state and the cell after the step, [B,H] both."""
        joined = torch.cat([input, hidden], 1)
        take, keep, _, show = (
            functional.linear(joined.detach(), weight, bias).sigmoid()
            for weight, bias in zip(self.weights, self.biases, strict=True)
        )
        candidate = self.squashed_candidate(self.candidate(joined))
        cell = self.sum(torch.stack([self.kept(cell, keep), self.taken(candidate, take)], dim=-1))
        return self.shown(self.squashed_cell(cell), show), cell


class SeenStep(nn.Module):
    """One step of an LSTM whose gates are layers too, and whose products have two factors: for rules on differences."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        weights = weight.detach().chunk(4)
        biases = (None,) * 4 if bias is None else bias.detach().chunk(4)
        outputs, inputs = weights[0].shape
        self.layers = nn.ModuleList()
        for one, shift in zip(weights, biases, strict=True):
            layer = nn.Linear(inputs, outputs, shift is not None, device="meta")
            layer.weight = nn.Parameter(one, requires_grad=False)
            if shift is not None:
                layer.bias = nn.Parameter(shift, requires_grad=False)
            self.layers.append(layer)
        self.squashes = nn.ModuleList([nn.Sigmoid(), nn.Sigmoid(), nn.Tanh(), nn.Sigmoid()])
        self.squashed_cell = nn.Tanh()
        self.kept, self.taken, self.shown = Gate(), Gate(), Gate()
        self.sum = Sum()

    def forward(
        self, input: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the hidden state and the cell after the step, [B,H] both."""
        joined = torch.cat([input, hidden], 1)
        take, keep, candidate, show = (
            squash(layer(joined)) for layer, squash in zip(self.layers, self.squashes, strict=True)
        )
        cell = self.sum(torch.stack([self.kept(cell, keep), self.taken(candidate, take)], dim=-1))
        return self.shown(self.squashed_cell(cell), show), cell


class LSTMCanonizer(Canonizer):
    """Writes every nn.LSTM out as steps of modules, as many as it takes on the network's clip.

    Relevance then goes through the candidates (linear layers, whose rule is the composite's) and through the sums of
    the cell, in proportion; the gates get none, and tanh passes it on. The steps are the module's children while the
    canonizer is there. With ``seen_gates`` gates are layers with rules as well (SeenStep).

    ``shape`` is that of a clip without the batch, by default ``model.spec.shape``. Raises InputError for recurrent
    modules of another kind: bidirectional, with projections, nn.GRU, nn.RNN.

    Source: Arras et al. 2017, arXiv 1706.07206; Arras et al. 2019, arXiv 1909.12114.
    """

    def __init__(self, shape: tuple[int, ...] | None = None, seen_gates: bool = False) -> None:
        self.shape, self.seen_gates = shape, seen_gates
        self.module: nn.LSTM | None = None

    def apply(self, root_module: nn.Module) -> list[Canonizer]:
        """Change all LSTMs; return what undoes it."""
        refuse_other_recurrence(root_module)
        modules = [m for m in root_module.modules() if isinstance(m, nn.LSTM) and "forward" not in vars(m)]
        if not modules:
            return []
        watch = _Lengths()
        dry_run(root_module, self.shape, watch, nn.LSTM)
        instances: list[Canonizer] = []
        for module in modules:
            instance = LSTMCanonizer(self.shape, self.seen_gates)
            instance.register(module, watch.lengths.get(module, 0))
            instances.append(instance)
        return instances

    @torch.no_grad()
    def register(self, module: nn.LSTM, length: int) -> None:
        """Write one LSTM out in ``length`` steps."""
        layers = nn.ModuleList()
        for number in range(module.num_layers):
            weight = torch.cat([getattr(module, f"weight_{kind}_l{number}") for kind in ("ih", "hh")], 1)
            bias = None
            if module.bias:
                bias = getattr(module, f"bias_ih_l{number}") + getattr(module, f"bias_hh_l{number}")
            kind = SeenStep if self.seen_gates else Step
            layers.append(nn.ModuleList(kind(weight, bias) for _ in range(length)))
        module.add_module("canonizer_layers", layers.train(module.training))
        object.__setattr__(module, "forward", _unrolled.__get__(module))
        self.module = module

    def remove(self) -> None:
        """Give the LSTM its own forward back."""
        if self.module is not None:
            object.__delattr__(self.module, "forward")
            del self.module.canonizer_layers
            self.module = None


def refuse_other_recurrence(model: nn.Module) -> None:
    """Raise InputError for a recurrent module that LSTMCanonizer cannot write out."""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            plain = isinstance(module, nn.LSTM) and not module.bidirectional and not module.proj_size
            if not plain:
                raise InputError(
                    f"{name or 'the network'} ({module}) has no rules, which only nn.LSTM in one direction has: "
                    "gradient, gradcam and occlusion explain it"
                )


class _Lengths:
    """Notes how many steps each module takes in a run."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.lengths: dict[nn.Module, int] = {}

    def note(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        self.lengths[module] = _steps_of(module, args[0])

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def _steps_of(module: nn.LSTM, input: Any) -> int:
    if isinstance(input, PackedSequence) or input.ndim != 3:
        raise InputError("under rules an LSTM takes a batch of sequences of one length: unpack them, or use gradient")
    return int(input.shape[1 if module.batch_first else 0])


def _unrolled(
    self: Any, input: torch.Tensor, hx: tuple[torch.Tensor, torch.Tensor] | None = None
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """The forward of an nn.LSTM, step by step."""
    length, time = _steps_of(self, input), 1 if self.batch_first else 0
    known = len(self.canonizer_layers[0])
    if length != known:
        raise InputError(f"the LSTM was written out for {known} steps, and got {length}: set model.spec to the clip")
    values = input.unbind(time)
    last: list[tuple[torch.Tensor, torch.Tensor]] = []
    for number, steps in enumerate(self.canonizer_layers):
        zeros = input.new_zeros(values[0].shape[0], self.hidden_size)
        hidden, cell = (zeros, zeros) if hx is None else (hx[0][number], hx[1][number])
        outputs = []
        for value, step in zip(values, steps, strict=True):
            hidden, cell = step(value, hidden, cell)
            outputs.append(hidden)
        values = tuple(outputs)
        last.append((hidden, cell))
    hiddens, cells = zip(*last, strict=True)
    return torch.stack(values, time), (torch.stack(hiddens), torch.stack(cells))
