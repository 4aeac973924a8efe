"""Rules act on the weights that a network computes with, and on batch norms as they are."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import selrel_zennit as sr
from by_hand import Network, Normed, assert_dtd, network, noise, with_statistics
from selrel_zennit.network.copying import own_copy
from selrel_zennit.network.plain_layers import make_layers_plain

# --- weights that are computed ---


def standard(weight):
    centred = weight - weight.mean((1, 2, 3, 4), keepdim=True)
    return centred / (centred.square().mean((1, 2, 3, 4), keepdim=True).sqrt() + 1e-5)


class StandardConv(nn.Conv3d):
    def forward(self, input):
        return F.conv3d(input, standard(self.weight), self.bias, self.stride, self.padding)


class Standardised(Network):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = StandardConv(3, 4, 3, padding=1), StandardConv(4, 6, 3, padding=1)


WEIGHTS = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight_norm": weight_norm,
    "spectral_norm": lambda layer: spectral_norm(layer, n_power_iterations=20),
    "parametrised weight_norm": parametrizations.weight_norm,
    "parametrised spectral_norm": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("kind", [*WEIGHTS, "standardised"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_rules_act_on_the_weight_that_is_computed_with(kind):
    model = network(Standardised if kind == "standardised" else Network)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for layer in (model.conv1, model.conv2, model.fc):
            WEIGHTS.get(kind, lambda layer: layer)(layer)
        model.train()(noise())
        model.eval()(noise())
    plain = network(Network)
    for name in ("conv1", "conv2", "fc"):
        weight = getattr(model, name).weight
        weight = standard(weight) if kind == "standardised" and name != "fc" else weight
        getattr(plain, name).weight.data = weight.detach().clone()
        getattr(plain, name).bias.data = getattr(model, name).bias.detach().clone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert_dtd(model, noise(), plain)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    made = own_copy(model)
    assert make_layers_plain(made) == (["conv1", "conv2"] if kind == "standardised" else ["conv1", "conv2", "fc"])
    assert all(type(layer) in (nn.Conv3d, nn.Linear) for layer in (made.conv1, made.conv2, made.fc))


class Padded(nn.Conv3d):
    """Pads by itself and computes with its own weight: plain enough."""

    def forward(self, input):
        return super().forward(F.pad(input, [1] * 6))


class Gained(nn.Conv3d):
    """Multiplies its output, which no plain layer does."""

    def forward(self, input):
        return super().forward(input) * 2


def test_a_layer_that_pads_is_left_and_one_that_scales_is_refused():
    model = network(Network)
    clip = noise()
    padded = copy.deepcopy(model)
    padded.conv2 = Padded(4, 6, 3).eval()
    padded.conv2.weight, padded.conv2.bias = model.conv2.weight, model.conv2.bias
    assert make_layers_plain(own_copy(padded)) == []
    assert_dtd(padded, clip, model)
    model.conv2.__class__ = Gained
    with pytest.raises(sr.InputError, match=r"no rule sees: conv2: mul is done inside a layer whose rule"):
        sr.explain(model, clip, "dtd")


# --- batch norms ---


class Frozen(nn.Module):
    """A batch norm as detectors have it: buffers, and a forward of its own."""

    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, values):
        shape = (1, -1, 1, 1, 1)
        scale = self.weight.view(shape) * (self.running_var.view(shape) + 1e-5).rsqrt()
        return values * scale + (self.bias.view(shape) - self.running_mean.view(shape) * scale)


@pytest.mark.parametrize("norm", [nn.BatchNorm3d, nn.SyncBatchNorm, Frozen])
def test_batch_norms_behind_a_convolution_are_merged(norm):
    model = network(lambda: Normed(norm))
    plain = network(Network)
    for number in (1, 2):
        layer, folded = getattr(model, f"conv{number}"), getattr(plain, f"conv{number}")
        one = getattr(model, f"norm{number}")
        with_statistics(one, number)
        scale = one.weight / (one.running_var + 1e-5).sqrt()
        folded.weight.data = layer.weight * scale.view(-1, 1, 1, 1, 1)
        folded.bias.data = (layer.bias - one.running_mean) * scale + one.bias
    plain.fc.load_state_dict(model.fc.state_dict())
    assert_dtd(model, noise(), plain)


class Slimmed(Network):
    """A batch norm straight before a convolution, dead in two channels, so that they are constants."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm3d(4)

    def trunk(self, clip):
        return self.relu2(self.conv2(self.norm(self.relu1(self.conv1(clip)))))


@pytest.mark.parametrize("gamma", [0.0, 1e-39, 1e-3, -0.5])
def test_a_batch_norm_before_a_convolution_loses_nothing(gamma):
    model = network(Slimmed)
    model.norm.weight.data = torch.tensor([1.0, gamma, 0.7, gamma], dtype=torch.float64)
    model.norm.bias.data = torch.tensor([0.1, 30.0, -0.2, 20.0], dtype=torch.float64)
    model.norm.running_var.fill_(50.0)
    clip = noise()
    for method in ("dtd", "lrp_epsilon_plus", "lrp_alpha2_beta1", "excitation_backprop"):
        logits = sr.explain(model, clip, method).logits
        np.testing.assert_allclose(logits, model(clip), rtol=1e-6)
    # By hand: conv2 shares by w·n, n the normed values, and what it shares goes through the norm as it is.
    recorded = sr.build_method("dtd", model, record=["conv2", "norm", "relu1"])
    recorded(clip, sr.one_hot(2, 5).double())
    low = model.relu1(model.conv1(clip))
    normed = model.norm(low)
    up, down = model.conv2.weight.clamp(min=0), model.conv2.weight.clamp(max=0)
    parts = [normed.clamp(min=0).requires_grad_(), normed.clamp(max=0).requires_grad_()]
    z = F.conv3d(parts[0], up, padding=1) + F.conv3d(parts[1], down, padding=1)
    downs = torch.autograd.grad(z, parts, recorded.recorded["conv2"] / (z + 1e-6))
    expected = sum(part.detach() * one for part, one in zip(parts, downs, strict=True))
    torch.testing.assert_close(recorded.recorded["norm"], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(recorded.recorded["relu1"], expected, rtol=1e-9, atol=1e-12)
