"""What is explained is the network that was given, or it is refused; the network itself is never touched."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

import selrel_zennit as sr
from by_hand import SPEC, Context, Network, Normed, network, noise, with_statistics
from selrel_deploy import compile_explanation
from selrel_zennit.attribution import Gradient
from selrel_zennit.canonizers.batch_norm import BatchNormCanonizer, VideoCanonizer
from selrel_zennit.composites import DTD
from selrel_zennit.lint.linter import lint
from selrel_zennit.network.copying import own_copy
from selrel_zennit.network.same_network import difference, first_deviation
from selrel_zennit.pipeline import explain_video

# --- the check itself ---


def test_logits_of_another_network_are_refused_with_the_layer(monkeypatch):
    model = network(Normed)
    for number in (1, 2):
        with_statistics(getattr(model, f"norm{number}"), number)
    register = BatchNormCanonizer.register

    def skipping(self, layer, norm):
        register(self, layer, norm)
        if layer.in_channels == 4:
            layer.bias.data = layer.bias.data + 1  # one merge that goes wrong

    monkeypatch.setattr(BatchNormCanonizer, "register", skipping)
    with pytest.raises(sr.InputError, match=r"another than the one given \(logits differ by .*, first at conv2\)"):
        sr.explain(model, noise(), "dtd")
    assert sr.explain(model, noise(), "gradient").logits.shape == (1, 5)


def test_every_way_in_makes_the_check(monkeypatch):
    model = network(Normed).float()
    with_statistics(model.norm1, 1)
    model.norm1.float()
    monkeypatch.setattr(BatchNormCanonizer, "_make_identity", lambda self, norm: None)  # merged, and still there
    clip = noise().float()
    ways = (
        lambda: sr.explain(model, clip, "dtd"),
        lambda: sr.build_method("lrp_epsilon_plus", model).check(clip),
        lambda: lint(model, "dtd", clip),
        lambda: compile_explanation(sr.build_method("dtd", model), clip),
        lambda: explain_video(model, np.zeros((8, 16, 16, 3), np.uint8), "dtd", frozen=False),
    )
    for way in ways:
        with pytest.raises(sr.InputError, match="is another than the one given"):
            way()


def test_the_first_clip_of_a_kind_is_checked_and_later_ones_are_not():
    model = network(Normed)
    runs = []
    model.conv1.register_forward_hook(lambda *_: runs.append(1))
    with sr.build_method("dtd", model) as attributor:
        entered = len(runs)  # canonizers look at the network by runs of copies
        for _ in range(3):
            attributor(noise(), sr.one_hot(0, 5).double())
        assert len(runs) - entered == 4
        attributor(torch.cat([noise(), noise(seed=2)]), sr.one_hot([0, 1], 5).double())
        assert len(runs) - entered == 6
        model.fc.bias.add_(1)
        attributor(noise(), sr.one_hot(0, 5).double())
        assert len(runs) - entered == 8


@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        ([[1.0, 2.0]], None),
        ([[1.0, 2.0 + 1e-6]], None),
        ([[1.0, 2.1]], "logits differ by 0.1, of 2"),
        ([[float("nan"), 2.0]], "logits differ by nan"),
        ([[1.0, 2.0, 3.0]], r"logits of shape (1, 3), not (1, 2)"),
    ],
)
def test_how_logits_differ(logits, reason):
    found = difference(torch.tensor([[1.0, 2.0]]), torch.tensor(logits))
    assert found is reason is None or (reason is not None and found.startswith(reason))


def test_the_top_class_must_be_the_same_unless_both_are_as_good():
    expected = torch.tensor([[2.0, 2.0005, 0.0]])
    assert difference(expected, torch.tensor([[2.0004, 2.0001, 0.0]]), 1e-3) is None
    assert difference(torch.tensor([[1.0, 1.5]]), torch.tensor([[1.3, 1.2]]), 0.21) == "class 0 is named, not 1"


def test_deviations_are_named_in_the_order_of_running():
    model = network(Network)
    other = own_copy(model)
    assert first_deviation(model, other, noise()) == ""
    other.conv2.weight.data = other.conv2.weight.data + 0.1
    assert first_deviation(model, other, noise()) == "conv2"


# --- the network is never harmed ---


class Remembers(Network):
    """Keeps what it was given, counts its runs in a buffer and holds a lock, which Python cannot copy."""

    def __init__(self):
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))
        self.lock, self.last = threading.Lock(), None

    def forward(self, clip):
        self.last = clip
        self.runs += 1
        return super().forward(clip)


@pytest.mark.parametrize("method", ["dtd", "gradient", "gradcam", "occlusion"])
@pytest.mark.parametrize("failing", [False, True])
def test_the_network_is_not_run_nor_changed(method, failing):
    model = network(Remembers)
    before = {key: id(value) for key, value in vars(model).items()}
    hooks = [len(module._forward_hooks) for module in model.modules()]
    attributor = sr.build_method(method, model)
    with attributor:
        if failing:
            with pytest.raises(ZeroDivisionError):
                attributor(noise(), lambda logits: 1 / 0)
        else:
            attributor(noise(), sr.one_hot(0, 5).double())
        assert attributor.model is not model
        assert attributor.model.lock is model.lock
    assert attributor.model is model
    assert model.last is None
    assert model.runs == 0
    assert {key: id(value) for key, value in vars(model).items()} == before
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_a_copy_shares_its_memory_and_leads_nowhere():
    model = network(Network)
    model.fc.weight.requires_grad_()
    model.twin = nn.Linear(6, 5).double()
    model.twin.weight = model.fc.weight
    made = own_copy(model)
    assert made.fc.weight is not made.twin.weight is not model.fc.weight
    for one in (made.fc.weight, made.twin.weight):
        assert one.data_ptr() == model.fc.weight.data_ptr()
        assert not one.requires_grad
    made.fc.weight.data = torch.zeros(5, 6, dtype=torch.float64)
    assert model.fc.weight.any()
    assert made.twin.weight.any()


def test_networks_made_under_inference_mode_are_explained():
    with torch.inference_mode():
        model = network(Normed)
        clip = noise()
        inside = sr.explain(model, clip, "dtd", 2)
    outside = sr.explain(model, clip.clone(), "dtd", 2)
    usual = sr.explain(network(Normed), noise(), "dtd", 2)
    for one in (inside, outside):
        np.testing.assert_array_equal(one.relevance, usual.relevance)


def test_a_composite_without_canonizers_is_given_them():
    model = network(Context)
    low, high = (torch.from_numpy(end.copy()) for end in SPEC.bounds())
    for composite in (DTD(low, high), DTD(low, high, canonizers=[VideoCanonizer()])):
        _, relevance = Gradient(model, composite)(noise(), sr.one_hot(0, 5).double())
        assert float(relevance.sum()) == pytest.approx(1, abs=1e-3)
