"""The linter finds planted faults, each by its own name, and is silent where there is nothing to find."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zennit.attribution import Gradient, SmoothGrad
from zennit.composites import EpsilonPlus, GuidedBackprop

import selrel_zennit as sr
from networks import small_c3d
from selrel_zennit.canonizers import batch_norm as canonizers
from selrel_zennit.canonizers.gates import Gate
from selrel_zennit.composites import ContrastiveExcitationBackprop
from selrel_zennit.lint.linter import lint

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
        return self.relu2(self.conv2(self.relu1(self.conv2(values)))) if values.sum() > -1e9 else values


class InPlace(Sound):
    def middle(self, values):
        return self.relu2(self.conv2(values)).mul_(2) if values.sum() > -1e9 else values


class Scale(nn.Module):
    def forward(self, values):
        return values * 3 if values.sum() > -1e9 else values


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


def set_to_zero(layer, values):
    values = layer(values)
    values[:, 0] = 0
    return values


def by_keywords(layer, values):
    return torch.add(input=layer(values), other=values) if values.sum() > -1e9 else values


# What a forward does instead of relu2(conv2(x) + x): (function of conv2 and x, kind, start of the message).
FORMS = {
    "setitem": (set_to_zero, "in place", "setitem works in place"),
    "relu, inplace=True": (lambda layer, x: F.relu(layer(x), inplace=True), "in place", "relu works in place"),
    "relu_": (lambda layer, x: layer(x).relu_(), "in place", "relu_ works in place"),
    "relu_ of what a rule has read": (lambda layer, x: layer(x) * x.relu_(), "in place", "relu_ works in place"),
    "two outputs": (lambda layer, x: layer(x).max(2, keepdim=True)[0], "functional", "max is called"),
    "sigmoid": (lambda layer, x: torch.sigmoid(layer(x)), "functional", "sigmoid is called"),
    "softmax": (lambda layer, x: layer(x).softmax(1), "functional", "softmax is called"),
    "average pool": (lambda layer, x: layer(F.avg_pool3d(x, 2)), "functional", "avg_pool3d is called where no rule"),
    "mean": (
        lambda layer, x: layer(x.mean((2, 3, 4), True)),
        "functional",
        "mean is called where no rule sees it",
    ),
    "keywords": (by_keywords, "addition", "adds two tensors where no rule"),
    "product by keywords": (lambda layer, x: torch.mul(input=layer(x), other=x), "functional", "mul is called"),
}


class Formed(Sound):
    """Sound, but for one form in the middle, where torch.fx cannot trace it."""

    form = None

    def middle(self, values):
        return type(self).form(self.conv2, values) if values.sum() > -1e9 else values


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_call_is_seen(name):
    form, kind, message = FORMS[name]
    torch.manual_seed(1)
    model = network(type("Formed", (Formed,), {"form": staticmethod(form)}))
    found = [finding for finding in lint(model).findings if finding.message.startswith(message)]
    assert [(finding.kind, finding.module) for finding in found] == [(kind, "Formed")]


class MeanAtTheEnd(Sound):
    def forward(self, clip):
        return self.fc(self.middle(self.relu1(self.norm1(self.conv1(clip)))).mean((2, 3, 4)))


class MeanOfLogits(Sound):
    def __init__(self):
        super().__init__()
        self.fc = nn.Conv3d(4, 5, 1)
        self.fc.weight.data.abs_()  # so that every position has something to share relevance by

    def forward(self, clip):
        return self.fc(self.middle(self.relu1(self.norm1(self.conv1(clip))))).mean((2, 3, 4))


class Shift(Sound):
    """Values move by a frame, into a tensor that no rule has read; a last frame stays 0."""

    def middle(self, values):
        moved = torch.zeros_like(values)
        moved[:, :2, 1:] = values[:, :2, :-1]
        moved[:, 2:] = values[:, 2:]
        return self.relu2(self.conv2(moved))


class Gated(Sound):
    """A gate made by functions: it gets no relevance, so that there is nothing for a rule to see."""

    def __init__(self):
        super().__init__()
        self.gate = Gate()

    def middle(self, values):
        return self.relu2(self.conv2(self.gate(values, values.mean((2, 3, 4), keepdim=True).sigmoid())))


class Again(Sound):
    """What torch.fx can trace becomes modules: a layer that is called twice, a scale in place, functions."""

    def middle(self, values):
        values = F.relu(self.conv2(F.relu(self.conv2(values), inplace=True))).mul_(2) / 3 + 0.5
        return F.avg_pool3d(values, 2)


class Decides(Sound):
    def middle(self, values):
        return self.relu2(self.conv2(values)) if values.mT.sum() > -1e9 else values


@pytest.mark.parametrize("kind", [MeanAtTheEnd, MeanOfLogits, Shift, Gated, Again, Decides])
def test_what_changes_no_relevance_is_no_finding(kind):
    report = lint(network(kind))
    assert report.findings == []
    assert report.passed


def test_a_softmax_is_the_end_whatever_its_shape():
    class Reshaped(Sound):
        def forward(self, clip):
            return super().forward(clip).softmax(1).reshape(1, 5)

    found = lint(network(Reshaped)).findings
    assert [finding.kind for finding in found] == ["softmax"]


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
    monkeypatch.setattr(canonizers.FunctionCanonizer, "apply", lambda self, model: [])
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
    assert "of the relevance arrives at the clip, though no module changes it by more than" in finding.message


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
        (
            {"method": "gradient"},
            "gradient places no rules that conserve relevance: lint takes .*dtd, dtd_eps",
        ),
        ({"method": "guided_backprop"}, "guided_backprop places no rules that conserve"),
        ({"method": "deconvnet"}, "deconvnet places no rules that conserve"),
        ({"method": "guided_gradcam", "layer": "conv2"}, "guided_gradcam places no rules that conserve"),
        ({"method": "dtd_contrastive"}, "relevance of dtd_contrastive sums to 0, .*: lint dtd, which has its rules"),
        ({"method": "excitation_backprop", "contrastive": True}, "with contrastive does not end with all"),
        ({"method": "excitation_backprop", "layer": "conv2"}, "with layer does not end with all"),
        ({"method": "dtt"}, "no method named 'dtt'"),
        ({"threshold": 0}, r"must lie in \(0, 1\), got 0"),
        ({"threshold": 2.0}, r"must lie in \(0, 1\), got 2.0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(sr.InputError, match=message):
        lint(network(Sound), **arguments)


class Against(Gradient):
    """A contrast that the linter does not know."""

    def forward(self, input, attr_output_fn):
        return super().forward(input, lambda logits: attr_output_fn(logits) - 1 / logits.shape[1])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda model: Gradient(model), "Gradient places no rules that conserve"),
        (lambda model: Gradient(model, GuidedBackprop()), "GuidedBackprop places no rules that conserve"),
        (
            lambda model: SmoothGrad(model, composite=EpsilonPlus()),
            "SmoothGrad of EpsilonPlus places no rules",
        ),
        (
            lambda model: Against(model, EpsilonPlus()),
            "Against of EpsilonPlus sums to 0, .*: lint its composite with",
        ),
        (lambda model: sr.build_method("dtd_contrastive", model), "lint dtd, which has its rules"),
    ],
)
def test_attributors_that_do_not_conserve(build, message):
    model = network(Sound)
    with pytest.raises(sr.InputError, match=message) as caught:
        lint(model, build(model))
    assert "\n" not in str(caught.value)


def test_an_attributor_that_conserves_is_followed():
    model = network(Sound)
    composite = ContrastiveExcitationBackprop(False, canonizers=[canonizers.VideoCanonizer()])
    assert lint(model, Gradient(model, composite)).passed


def test_what_is_lost_between_modules_is_said_to_be_without_a_cause():
    """Channels that are dropped before the rules that would share with them: nothing that a module does."""

    class Dropping(Sound):
        def middle(self, values):
            return self.relu2(torch.cat([values[:, :2], torch.ones_like(values[:, 2:])], 1))

    report = lint(network(Dropping))
    (finding,) = report.findings
    between = report.conserved + sum(flow.lost for flow in report.flows) - 1
    assert between < -0.01
    assert finding.message.endswith(f"; between modules {between:+.1%}")
