"""The definition itself: equal to Zennit with rules placed by hand, the same however a network is written, conserving.

Zennit serves as a second derivation here; the definition shares no code with it.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import (
    EpsilonAlpha2Beta1,
    EpsilonGammaBox,
    EpsilonPlus,
    ExcitationBackprop,
    GuidedBackprop,
    NameMapComposite,
)
from zennit.rules import Norm, Pass, ZBox, ZPlus

from random_networks import blocks, rules
from random_networks.compare import define, relative_error
from random_networks.definition import METHODS, Definition
from random_networks.grammar import draw

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

LOW = torch.tensor([-1.5, -1.2, -1.0]).double().reshape(1, 3, 1, 1, 1)
HIGH = torch.tensor([1.0, 1.4, 2.0]).double().reshape(1, 3, 1, 1, 1)
TARGET = 2


def clip(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return LOW + (HIGH - LOW) * torch.rand(1, 3, 5, 13, 13, generator=generator, dtype=torch.float64)


def norm(channels):
    made = nn.BatchNorm3d(channels, eps=1e-12)  # Zennit's merged batch norm still divides by √(1 + ε)
    with torch.no_grad():
        made.weight.uniform_(-1.5, 1.5)
        made.bias.normal_()
        made.running_mean.normal_()
        made.running_var.uniform_(0.3, 2)
    return made


def sequential(*between):
    """Return layers whose order of registration is that of running, which Zennit needs."""
    layers = [
        nn.Conv3d(3, 4, 3, padding=1, stride=(1, 2, 2)),
        *between,
        nn.ReLU(),
        nn.MaxPool3d(3, 2, 1),
        nn.Conv3d(4, 6, (2, 3, 3), padding=1, groups=2, padding_mode="replicate"),
        nn.ReLU(),
        nn.AvgPool3d(2, 1),
        nn.Conv3d(6, 6, 3, padding=2, dilation=2, padding_mode="circular"),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(6, 8),
        nn.ReLU(),
        nn.Linear(8, 5),
    ]
    return nn.Sequential(*layers).double().eval()


def by_hand(method, model, canonizers):
    """Return the composite that Zennit's documentation gives for a method."""
    return {
        "dtd": lambda **given: dtd_by_hand(model, **given),
        "lrp_epsilon_plus": EpsilonPlus,
        "lrp_alpha2_beta1": EpsilonAlpha2Beta1,
        "lrp_epsilon_gamma_box": lambda **given: EpsilonGammaBox(LOW, HIGH, **given),
        # Activations and batch norms pass relevance, which Zennit's gives their gradient.
        "excitation_backprop": lambda **given: ExcitationBackprop(
            zero_params="bias", layer_map=[((nn.BatchNorm3d, nn.ReLU), Pass())], **given
        ),
        "guided_backprop": lambda **given: GuidedBackprop(),
    }[method](canonizers=canonizers)


def dtd_by_hand(model, canonizers):
    rules, names = {"zero_params": "bias"}, {name: module for name, module in model.named_modules() if name}
    kinds = {
        "first": [next(name for name, module in names.items() if isinstance(module, nn.Conv3d))],
        "linear": [name for name, module in names.items() if isinstance(module, nn.Conv3d | nn.Linear)],
        "mean": [name for name, module in names.items() if isinstance(module, nn.AvgPool3d | nn.AdaptiveAvgPool3d)],
        "pass": [name for name, module in names.items() if isinstance(module, nn.ReLU | nn.BatchNorm3d)],
    }
    places = [
        (kinds["first"], ZBox(LOW, HIGH, **rules)),
        (kinds["linear"], ZPlus(**rules)),
        (kinds["mean"], Norm()),
        (kinds["pass"], Pass()),
    ]
    return NameMapComposite(places, canonizers=canonizers)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "gradcam"])
@pytest.mark.parametrize("with_norm", [False, True])
def test_sequential_networks_equal_zennit_by_hand(method, with_norm):
    model = sequential(*[norm(4)] if with_norm else [])
    canonizers = [SequentialMergeBatchNorm()] if with_norm else []
    defined = Definition(model, clip(), LOW, HIGH).explain(method, TARGET)
    with Gradient(model, by_hand(method, model, canonizers)) as attributor:
        _, found = attributor(clip(), torch.eye(5).double()[[TARGET]])
    assert defined.abs().sum() > 0
    assert relative_error(found, defined) < 1e-10


def test_gradcam_equals_its_formula():
    model = sequential(norm(4))
    model.cam_layer = "7"
    defined = Definition(model, clip(), LOW, HIGH).explain("gradcam", TARGET)
    maps = model[:8](clip()).detach().requires_grad_()
    model[8:](maps)[0, TARGET].backward()
    cam = (maps.grad.mean((2, 3, 4), keepdim=True) * maps).sum(1, keepdim=True).relu()
    cam = functional.interpolate(cam, size=(5, 13, 13), mode="trilinear", align_corners=False).detach()
    assert cam.abs().sum() > 0
    assert relative_error(defined, (cam / 3).expand(1, 3, 5, 13, 13)) < 1e-12


def test_dtd_is_conserved(monkeypatch):
    """Without biases and shifts no unit is active by them alone; what is left for ε to take is made small."""
    monkeypatch.setattr(rules, "EPSILON", 1e-13)
    definition = Definition(without_shifts(sequential(norm(4))), clip(), LOW, HIGH)
    top = int(definition.logits.argmax())  # whose logit has what speaks for it
    assert float(definition.explain("dtd", top).sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", ["broadcast sum", "functional pool", "Gate", "scaled in forward", "two stems"])
def test_nothing_is_counted_twice(kind, monkeypatch):
    """In a residual branch a negative sum may have nothing that pulls up, and loses its share: a few percent."""
    monkeypatch.setattr(rules, "EPSILON", 1e-13)
    drawn = draw(8, (kind,))
    without_shifts(drawn.model)
    definition = define(drawn)
    top = int(definition.logits.argmax())
    assert float(definition.explain("dtd", top).sum()) == pytest.approx(1, abs=0.05)


def without_shifts(model):
    with torch.no_grad():
        for name, values in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(("bias", "running_mean")):
                values.zero_()
    return model


def twin(first, second):
    """Return the definition's maps of two ways to write one network, for all methods that have rules."""
    one, other = (Definition(*network) for network in (first, second))
    for method in METHODS[:5]:
        yield one.explain(method, TARGET), other.explain(method, TARGET)


def test_a_merged_batch_norm_is_one_merged_by_hand():
    model = sequential(norm(4))
    merged = copy.deepcopy(model)
    scale = (model[1].weight / torch.sqrt(model[1].running_var + model[1].eps)).detach()
    with torch.no_grad():
        merged[0].weight *= scale.reshape(-1, 1, 1, 1, 1)
        merged[0].bias.copy_((merged[0].bias - model[1].running_mean) * scale + model[1].bias)
    merged[1] = nn.Identity()
    for one, other in twin((model, clip(), LOW, HIGH), (merged, clip(), LOW, HIGH)):
        assert relative_error(one, other) < 1e-10


def test_scaling_inside_the_network_is_scaling_before_it():
    """The relevance of x is that of its scaled self: a fixed factor and shift pass it, and the box is scaled too."""
    model, scaled = sequential(), blocks.Scaled("mean and std").double()
    inside = nn.Sequential(scaled, model)
    outside = (model, scaled(clip()), scaled(LOW), scaled(HIGH))
    for one, other in twin((inside, clip(), LOW, HIGH), outside):
        assert relative_error(one, other) < 1e-10


def test_functions_are_what_modules_are():
    model = sequential(norm(4))

    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model

        def forward(self, x):
            first, bn, second, third = (self.layers[at] for at in (0, 1, 4, 7))
            x = functional.conv3d(x, first.weight, first.bias, (1, 2, 2), 1)
            x = functional.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
            x = functional.max_pool3d(functional.relu(x), 3, 2, 1)
            x = functional.avg_pool3d(second.forward(x).clamp(min=0), 2, 1)
            x = third(x).relu_().mean((2, 3, 4))
            return self.layers[13](torch.relu(self.layers[11](x)))

    for one, other in twin((model, clip(), LOW, HIGH), (Written().eval(), clip(), LOW, HIGH)):
        assert relative_error(one, other) < 1e-10


def test_logits_are_the_networks():
    for seed in range(0, 40, 10):
        drawn = draw(seed)
        with torch.no_grad():
            assert torch.equal(define(drawn).logits, drawn.model(drawn.clip))
