"""Gates and LSTMs under rules: relevance by the equations of Arras et al. 2017, and networks left as they were."""

import pytest
import torch
from torch import nn
from zennit.composites import EpsilonPlus
from zennit.core import Composite

import selrel_zennit as sr
from networks import snapshot
from selrel_zennit.canonizers.batch_norm import FunctionCanonizer, VideoCanonizer
from selrel_zennit.canonizers.gates import Gate, GateCanonizer, LSTMCanonizer

SPEC = sr.ClipSpec(frames=5, short_side=4, crop=4)
EPSILON = 1e-6


class Frames(nn.Module):
    """An LSTM over the pixels of each frame."""

    def __init__(self, layers=1, batch_first=True, bias=True, **options):
        super().__init__()
        self.flatten = nn.Flatten(2)
        self.batch_first = batch_first
        self.lstm = nn.LSTM(48, 6, layers, bias, batch_first, **options)
        self.fc = nn.Linear(6, 3)
        self.spec = SPEC

    def forward(self, clip):
        frames = self.flatten(clip.transpose(1, 2))
        steps, _ = self.lstm(frames if self.batch_first else frames.transpose(0, 1))
        return self.fc(steps[:, -1] if self.batch_first else steps[-1])


class Squeezed(nn.Module):
    """A convolution whose channels are gated."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv3d(3, 4, 1), Gate()
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Conv3d(4, 4, 1), nn.Sigmoid())
        self.end = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten())
        self.spec = SPEC

    def forward(self, clip):
        values = self.conv(clip)
        return self.end(self.gate(values, self.squeeze(values)))


def network(build, **options):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return build(**options).double().eval().requires_grad_(False)


@pytest.fixture
def pixels():
    return torch.rand(2, *SPEC.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6)) + 0.1


def stable(values):
    """Return Zennit's denominator: ε away from zero, with the sign of the value."""
    return values + torch.where(values < 0, -EPSILON, EPSILON)


def epsilon_rule(values, weight, bias, relevance):
    return values * ((relevance / stable(values @ weight.T + bias)) @ weight)


def test_relevance_through_an_lstm_is_that_of_its_equations(pixels):
    """LRP-ε through candidates and cells, nothing to the gates, step by step from the last; 1e-9 in float64."""
    model = network(Frames)
    lstm, fc = model.lstm, model.fc
    weight = torch.cat([lstm.weight_ih_l0, lstm.weight_hh_l0], 1)
    bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
    frames = pixels.transpose(1, 2).flatten(2)
    hidden = cell = torch.zeros(2, 6, dtype=torch.float64)
    kept = []
    for frame in frames.unbind(1):
        joined = torch.cat([frame, hidden], 1)
        take, keep, candidate, show = (joined @ weight.T + bias).chunk(4, 1)
        parts = keep.sigmoid() * cell, take.sigmoid() * candidate.tanh()
        cell = parts[0] + parts[1]
        hidden = show.sigmoid() * cell.tanh()
        kept.append((joined, *parts))
    start = sr.one_hot([0, 2], 3).double()
    to_hidden, to_cell = epsilon_rule(hidden, fc.weight, fc.bias, start), torch.zeros_like(cell)
    expected = []
    for joined, old, new in reversed(kept):
        to_cell = to_cell + to_hidden
        share = to_cell / stable(old + new)
        of_input = epsilon_rule(joined, weight[12:18], bias[12:18], share * new)
        to_hidden, to_cell = of_input[:, 48:], share * old
        expected.append(of_input[:, :48])
    expected = torch.stack(expected[::-1], 2).unflatten(1, (3, 4, 4)).movedim(4, 2)

    with sr.build_method("lrp_epsilon_plus", model) as attributor:
        logits, relevance = attributor(pixels, start)
    torch.testing.assert_close(logits, model(pixels), rtol=1e-12, atol=1e-12)
    # Cells near zero share out relevance many times what they have: relative to the largest.
    assert (relevance - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert expected.abs().max() > 1
    # The first frame reaches the class through five cells.
    assert expected[:, :, 0].abs().max() > 1e-4


@pytest.mark.parametrize(
    "options", [{}, {"layers": 2}, {"batch_first": False}, {"bias": False}, {"layers": 2, "dropout": 0.5}], ids=str
)
@pytest.mark.parametrize("nested", [False, True])
def test_an_lstm_written_out_is_the_same_network(options, nested, pixels):
    model = network(Frames, **options)
    before = snapshot(model, pixels)
    instances = VideoCanonizer().apply(model)
    if nested:
        instances += VideoCanonizer().apply(model)
    assert len(model.lstm.canonizer_layers) == options.get("layers", 1)
    assert all(len(steps) == SPEC.frames for steps in model.lstm.canonizer_layers)
    torch.testing.assert_close(model(pixels), torch.tensor(before[0]).double(), rtol=1e-6, atol=1e-6)
    for instance in reversed(instances):
        instance.remove()
    assert snapshot(model, pixels) == before
    assert "forward" not in vars(model.lstm)
    assert not hasattr(model.lstm, "canonizer_layers")


def test_without_the_canonizer_an_lstm_is_not_conserved(pixels):
    """What the steps are for: with the same rules, and with them alone, relevance sums to what it began with."""
    model = network(Frames)
    start = sr.one_hot(1, 3).double().expand(2, 3)

    def total(canonizers):
        composite = EpsilonPlus(zero_params="bias", canonizers=canonizers)
        with composite.context(model) as modified:
            clip = pixels.clone().requires_grad_()
            (relevance,) = torch.autograd.grad(modified(clip), clip, start)
        return (relevance.sum() / start.sum()).item()

    assert abs(total([LSTMCanonizer()]) - 1) < 1e-3
    assert abs(total([]) - 1) > 0.1


def test_a_gate_takes_no_relevance_and_keeps_its_gradient(pixels):
    model = network(Squeezed)
    gradient = sr.build_method("gradient", model)(pixels, sr.one_hot([0, 1], 4).double())[1]
    values = pixels.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(values), values, sr.one_hot([0, 1], 4).double())
    assert torch.equal(gradient, expected)
    instances = GateCanonizer().apply(model)
    signal, gate = torch.rand(2, 2, dtype=torch.float64), torch.rand(2, 1, dtype=torch.float64)
    signal.requires_grad_()
    gate.requires_grad_()
    product = model.gate(signal, gate)
    assert torch.equal(product, signal * gate)
    product.backward(torch.full((2, 2), 3.0, dtype=torch.float64))
    assert torch.equal(signal.grad, torch.full((2, 2), 3.0, dtype=torch.float64))
    assert gate.grad is None
    assert GateCanonizer().apply(model) == []
    for instance in instances:
        instance.remove()
    assert "forward" not in vars(model.gate)
    with sr.build_method("dtd", model) as attributor:
        _, relevance = attributor(pixels, sr.one_hot([0, 1], 4).double())
    assert relevance.sum().item() == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Frames(bidirectional=True),
            r"lstm .* has no rules, which only nn.LSTM in one direction has: gradient",
        ),
        (lambda: Frames(proj_size=2), "lstm .* has no rules"),
        (lambda: nn.Sequential(nn.Flatten(2), nn.GRU(80, 4)), "1 .* has no rules"),
    ],
    ids=["both directions", "projection", "GRU"],
)
def test_other_recurrent_modules_are_refused_and_what_was_done_is_undone(build, message, pixels):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.conv = build(), nn.Conv3d(3, 3, 1)

        def forward(self, clip):
            return self.inner(self.conv(clip) + clip)

    model = network(Around)
    assert len(FunctionCanonizer().apply(network(Around))) == 1
    with pytest.raises(sr.InputError, match=message):
        VideoCanonizer(SPEC.shape).apply(model)
    assert "forward" not in vars(model)
    assert not any(name.startswith("canonizer") for name, _ in model.named_modules())


def test_a_clip_of_another_length_is_named(pixels):
    model = network(Frames)
    with (
        Composite(canonizers=[LSTMCanonizer()]).context(model),
        pytest.raises(sr.InputError, match="5 steps, and got 3"),
    ):
        model(pixels[:, :, :3])
    with Composite(canonizers=[LSTMCanonizer((3, 3, 4, 4))]).context(model):
        model(pixels[:, :, :3])
