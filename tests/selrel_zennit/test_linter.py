"""The linter finds planted faults, each by its own name, and is silent where there is nothing to find."""

import pytest
import torch
from torch import nn

import selrel_zennit as sr
from networks import small_c3d
from selrel_zennit import canonizers
from selrel_zennit.linter import lint

SPEC = sr.ClipSpec(frames=4, short_side=10, crop=10)


class Sound(nn.Module):
    """A network in which nothing is wrong; its parts are what the faults change."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv3d(3, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm3d(4)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv3d(4, 4, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4, 5)

    def middle(self, values):
        return self.relu2(self.conv2(values) + values)

    def forward(self, clip):
        return self.fc(self.flatten(self.pool(self.middle(self.relu1(self.norm1(self.conv1(clip)))))))


class HiddenAddition(Sound):
    def middle(self, values):
        return self.relu2(self.conv2(values) + values if values.sum() > -1e9 else values)


class FunctionalProduct(Sound):
    def middle(self, values):
        return self.relu2(self.conv2(values)) * torch.sigmoid(self.relu2(values))


class LateNorm(Sound):
    def __init__(self):
        super().__init__()
        self.norm2 = nn.BatchNorm3d(4)

    def middle(self, values):
        return self.norm2(self.relu2(self.conv2(values)))


class Probabilities(Sound):
    def forward(self, clip):
        return torch.softmax(super().forward(clip), 1)


class Twice(Sound):
    def middle(self, values):
        return self.relu2(self.conv2(self.relu1(self.conv2(values))))


class InPlace(Sound):
    def middle(self, values):
        return self.relu2(self.conv2(values)).mul_(2)


class Scale(nn.Module):
    def forward(self, values):
        return values * 3


class NoRule(Sound):
    def __init__(self):
        super().__init__()
        self.relu2 = Scale()


def network(kind):
    torch.manual_seed(0)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    model.spec = SPEC
    return model.double().eval().requires_grad_(False)


FAULTS = {
    "addition": (HiddenAddition, {}, "HiddenAddition", "adds two tensors where no rule sees it"),
    "functional": (FunctionalProduct, {}, "FunctionalProduct", "mul is called where no rule sees it"),
    "batch norm": (LateNorm, {}, "norm2", "is merged into no convolution"),
    "softmax": (Probabilities, {}, "output", "the network ends in softmax"),
    "used twice": (Twice, {}, "conv2", "runs 2 times"),
    "in place": (InPlace, {}, "InPlace", "mul_ works in place outside of any module"),
    "bias": (Sound, {"method": "lrp_epsilon_plus"}, "fc", "of the relevance: drop it with zero_params='bias'"),
    "no rule": (NoRule, {}, "relu2", "Scale has no rule and changes the relevance"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_each_planted_fault_is_found(kind):
    build, options, module, message = FAULTS[kind]
    report = lint(network(build), **options)
    assert not report.passed
    found = [finding for finding in report.findings if finding.kind == kind]
    assert module in [finding.module for finding in found], report.findings
    assert any(message in finding.message for finding in found), found


@pytest.mark.parametrize("method", ["dtd", "dtd_epsilon_head", "excitation_backprop"])
def test_a_sound_network_passes(method):
    report = lint(network(Sound), method)
    assert report.findings == []
    assert report.passed
    assert abs(report.conserved - 1) < 1e-6


def test_flows_are_what_goes_in_and_out_of_each_module():
    """Of a network of linear layers under z⁺, by hand."""
    model = network(Sound)
    report = lint(model, "dtd")
    flows = {flow.module: flow for flow in report.flows}
    assert list(flows)[:3] == ["conv1", "norm1", "relu1"]
    assert flows["conv1"].rule == "ZBox"
    assert flows["conv2"].rule == "ZPlus"
    # The sum hands a part to the convolution and the rest around it; both come together below.
    assert 0 < flows["conv2"].before < 1 - 1e-3
    assert flows["relu1"].before == pytest.approx(1, abs=1e-6)
    assert flows["fc"].before == pytest.approx(1)
    assert flows["conv1"].after == pytest.approx(report.conserved, rel=1e-9)
    assert flows["norm1"].kind == "BatchNorm3d"


def test_without_the_canonizers_the_same_network_fails(monkeypatch):
    monkeypatch.setattr(canonizers.SumCanonizer, "apply", lambda self, model: [])
    monkeypatch.setattr(canonizers.BatchNormCanonizer, "apply", lambda self, model: [])
    report = lint(network(Sound), "dtd")
    assert {finding.kind for finding in report.findings} == {"addition", "batch norm"}
    assert abs(report.conserved - 1) > 0.1


def test_advice_is_only_what_can_be_done():
    """dtd drops biases by itself: a unit that is active by its bias alone is said to be that."""
    model = Sound().eval().requires_grad_(False)
    model.spec = SPEC
    with torch.no_grad():
        model.conv1.weight.fill_(0.1)
        model.conv1.bias.fill_(-1e4)  # the ReLU behind it is shut
        model.conv2.bias.fill_(1.0)
    for method, options, advice in (
        ("dtd", {}, "though its rule drops the bias"),
        ("lrp_epsilon_plus", {"zero_params": "bias"}, "though its rule drops the bias"),
        ("lrp_epsilon_plus", {}, "drop it with zero_params='bias'"),
    ):
        found = [finding for finding in lint(model, method, **options).findings if finding.module == "conv2"]
        assert [finding.kind for finding in found] == ["bias"]
        assert advice in found[0].message


def test_many_small_losses_are_a_finding():
    model = Sound().eval().requires_grad_(False)
    model.spec = SPEC
    with torch.no_grad():
        for layer in (model.conv1, model.conv2, model.fc):
            layer.weight.abs_()
            layer.bias.fill_(0.05)
    losses = [abs(flow.lost) for flow in lint(model, "lrp_epsilon_plus", threshold=1e-6).flows]
    threshold = 1.01 * max(losses)
    assert sum(losses) > threshold
    report = lint(model, "lrp_epsilon_plus", threshold=threshold)
    assert not report.passed
    (finding,) = report.findings
    assert finding.kind == "not conserved"
    assert "of the relevance arrives, though no module changes it by more than" in finding.message


def test_the_network_is_left_as_it_was():
    model = network(Sound)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lint(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_c3d_and_a_threshold():
    model = small_c3d()
    assert lint(model, "dtd").passed
    strict = lint(model, "lrp_epsilon_plus", threshold=1e-6)
    loose = lint(model, "lrp_epsilon_plus", threshold=0.999)
    assert len(strict.findings) > len(loose.findings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "gradient"}, "gradient places no rules"),
        ({"method": "dtt"}, "no method named 'dtt'"),
        ({"threshold": 0}, r"must lie in \(0, 1\), got 0"),
        ({"threshold": 2.0}, r"must lie in \(0, 1\), got 2.0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(sr.InputError, match=message):
        lint(network(Sound), **arguments)
