"""What is explained is the network that was given, with the weights it computes with, or it is refused.

Every network here computes what a plain one does, in another way; DTD of the plain one is derived by hand, in float64
and without Zennit: z⁺ with the activations of the network, z^B in the first layer, biases dropped, pools in proportion.
"""

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from zennit.composites import NameMapComposite

import selrel_zennit as sr
from selrel_deploy import compile_explanation
from selrel_zennit.attribution import Gradient
from selrel_zennit.canonizers import BatchNormCanonizer, VideoCanonizer
from selrel_zennit.composites import DTD
from selrel_zennit.copying import own_copy
from selrel_zennit.linter import lint
from selrel_zennit.paths import paths_of
from selrel_zennit.pipeline import explain_video
from selrel_zennit.plain_layers import make_layers_plain
from selrel_zennit.same_network import difference, first_deviation

SPEC = sr.ClipSpec(frames=4, short_side=16, crop=16)
MEAN, STD = (110.0, 100.0, 90.0), (60.0, 55.0, 50.0)
RAW = sr.ClipSpec(frames=4, short_side=16, crop=16, mean=(0, 0, 0))
SCALED = sr.ClipSpec(frames=4, short_side=16, crop=16, mean=MEAN, std=STD)


class Network(nn.Module):
    """Two convolutions, an average pool and a class layer; its parts are what the others change."""

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv3d(3, 4, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv3d(4, 6, 3, padding=1), nn.ReLU()
        self.pool, self.flat, self.fc = nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 5)
        self.spec, self.cam_layer = SPEC, "relu2"

    def trunk(self, clip):
        return self.relu2(self.conv2(self.relu1(self.conv1(clip))))

    def forward(self, clip):
        return self.fc(self.flat(self.pool(self.trunk(clip))))


def network(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().double().eval().requires_grad_(False)


def noise(spec=SPEC, seed=1, top=256):
    frames = np.random.default_rng(seed).integers(0, top, (1, spec.frames, spec.crop, spec.crop, 3), dtype=np.uint8)
    return torch.from_numpy(spec.from_pixels(frames)).double()


def stable(values):
    """Zennit adds 1e-6 to every divisor, away from zero."""
    return values + torch.where(values < 0, -1e-6, 1e-6)


def dtd_by_hand(plain, clip, target, spec=SPEC):
    """Return relevance [T,H,W] of a Network for one class."""
    w1, w2, w3 = plain.conv1.weight, plain.conv2.weight, plain.fc.weight[target].clamp(min=0)
    low1 = F.conv3d(clip, w1, plain.conv1.bias, padding=1).relu()
    low2 = F.conv3d(low1, w2, plain.conv2.bias, padding=1).relu()
    mean = low2.mean((2, 3, 4))
    at_pool = mean * w3 / stable(mean @ w3)
    relevance = low2 / low2[0, 0].numel() * (at_pool / stable(mean))[..., None, None, None]
    inputs = low1.clone().requires_grad_()
    z = F.conv3d(inputs, w2.clamp(min=0), padding=1)
    (down,) = torch.autograd.grad(z, inputs, relevance / stable(z))
    relevance = low1 * down
    return z_box(plain.conv1, [clip, *bounds(spec, clip)], relevance).sum(1)[0]


def bounds(spec, clip):
    return [torch.from_numpy(end.copy()).double().expand_as(clip) for end in spec.bounds()]


def z_box(layer, parts, relevance):
    """z^B of a convolution, from the clip, the least and the greatest one."""
    parts = [part.clone().requires_grad_() for part in parts]
    weights = (layer.weight, -layer.weight.clamp(min=0), -layer.weight.clamp(max=0))
    z = sum(F.conv3d(part, weight, padding=layer.padding) for part, weight in zip(parts, weights, strict=True))
    downs = torch.autograd.grad(z, parts, relevance / stable(z))
    return sum(part.detach() * down for part, down in zip(parts, downs, strict=True))


def assert_dtd(model, clip, plain, plain_clip=None, spec=SPEC):
    plain_clip = clip if plain_clip is None else plain_clip
    with torch.no_grad():
        torch.testing.assert_close(model(clip), plain(plain_clip), rtol=1e-9, atol=1e-9)
    explanation = sr.explain(model, clip, "dtd", 2)
    np.testing.assert_allclose(explanation.logits, plain(plain_clip), rtol=1e-5)
    expected = dtd_by_hand(plain, plain_clip, 2, spec).numpy()
    assert expected.sum() > 0.9
    assert np.linalg.norm(explanation.relevance[0] - expected) <= 1e-6 * np.linalg.norm(expected)
    assert explanation.unseen == ()


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


def with_statistics(norm, seed):
    generator = torch.Generator().manual_seed(seed)
    norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator) * 0.3)
    norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
    norm.weight.data = torch.randn(norm.weight.shape, generator=generator, dtype=torch.float64)
    norm.bias.data = torch.randn(norm.bias.shape, generator=generator, dtype=torch.float64) * 0.2
    norm.weight.data[0] = 0  # a dead channel, as network slimming leaves them
    norm.weight.data[1] = 1e-39


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


class Normed(Network):
    def __init__(self, norm=nn.BatchNorm3d):
        super().__init__()
        self.norm1, self.norm2 = norm(4), norm(6)

    def trunk(self, clip):
        return self.relu2(self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(clip))))))


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


# --- where the clip enters, and where the logits come from ---


class InputNorm(Network):
    def __init__(self):
        super().__init__()
        self.spec, self.norm = RAW, nn.BatchNorm3d(3, eps=0.0, affine=False)
        self.norm.running_mean.copy_(torch.tensor(MEAN))
        self.norm.running_var.copy_(torch.tensor(STD) ** 2)

    def forward(self, clip):
        return super().forward(self.norm(clip))


class ScalesInside(Network):
    def __init__(self):
        super().__init__()
        self.spec = RAW
        self.register_buffer("mean", torch.tensor(MEAN, dtype=torch.float64).view(1, 3, 1, 1, 1))
        self.register_buffer("std", torch.tensor(STD, dtype=torch.float64).view(1, 3, 1, 1, 1))

    def forward(self, clip):
        return super().forward((clip - self.mean) / self.std)


@pytest.mark.parametrize("build", [InputNorm, ScalesInside])
@pytest.mark.parametrize("top", [256, 40])
def test_the_box_is_that_of_what_the_first_convolution_sees(build, top):
    plain = network(Network)
    plain.spec = SCALED
    assert_dtd(network(build), noise(RAW, top=top), plain, noise(SCALED, top=top), SCALED)


class TwoStems(nn.Module):
    def __init__(self, late=False):
        super().__init__()
        self.spec = sr.ClipSpec(frames=8, short_side=16, crop=16)
        self.slow, self.fast = nn.Conv3d(3, 4, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(3, 4, 3, padding=1)
        self.relus = nn.ModuleList([nn.ReLU(), nn.ReLU()])
        self.pool, self.flat, self.fc = nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5)
        self.pools = nn.ModuleList([nn.AdaptiveAvgPool3d(1), nn.AdaptiveAvgPool3d(1)])

    def forward(self, clip):
        slow, fast = self.relus[0](self.slow(clip[:, :, ::4])), self.relus[1](self.fast(clip))
        return self.fc(self.flat(torch.cat([self.pools[0](slow), self.pools[1](fast)], 1)))


def test_every_convolution_that_sees_the_clip_is_a_stem():
    model = network(TwoStems)
    paths = paths_of(model)
    assert paths.stems == (model.slow, model.fast)
    assert paths.heads == (model.fc,)
    clip = noise(model.spec)
    with sr.build_method("dtd", model, record=["slow", "fast"]) as attributor:
        _, relevance = attributor(clip, sr.one_hot(1, 5).double())
        reached = attributor.recorded
    expected = torch.zeros_like(clip)
    for name, step in (("slow", 4), ("fast", 1)):
        parts = [one[:, :, ::step] for one in (clip, *bounds(model.spec, clip))]
        expected[:, :, ::step] += z_box(getattr(model, name), parts, reached[name])
    torch.testing.assert_close(relevance, expected, rtol=1e-8, atol=1e-12)


class StemLast(Network):
    def __init__(self):
        super().__init__()
        self.conv1 = self._modules.pop("conv1")


def test_the_order_of_registration_plays_no_part():
    model = network(StemLast)
    plain = network(Network)
    plain.load_state_dict(model.state_dict())
    assert [name for name, _ in model.named_children()][-1] == "conv1"
    assert_dtd(model, noise(), plain)


# --- functions, broadcasts, masks, layers called twice or by .forward() ---


class Functions(Network):
    """All of it by functions, with the parameters of its layers."""

    def forward(self, clip):
        low = F.relu(F.conv3d(clip, self.conv1.weight, self.conv1.bias, padding=1))
        low = self.conv2.forward(low).clamp(min=0)
        return F.linear(low.mean((2, 3, 4)), self.fc.weight, self.fc.bias)


class Adaptive(Network):
    def forward(self, clip):
        return self.fc(F.adaptive_avg_pool3d(self.trunk(clip), 1).flatten(1))


@pytest.mark.parametrize("build", [Functions, Adaptive])
def test_functions_are_modules_to_rules(build):
    assert_dtd(network(build), noise(), network(Network))


class Context(Network):
    """[B,C,T,H,W] + [B,C,1,1,1], as global context blocks add."""

    expanded = False

    def __init__(self):
        super().__init__()
        self.context = nn.AdaptiveAvgPool3d(1)

    def trunk(self, clip):
        low = super().trunk(clip)
        around = self.context(low)
        return low + (around.expand_as(low) if self.expanded else around)


def test_a_sum_that_broadcasts_shares_as_one_that_does_not():
    model, clip = network(Context), noise()
    expanded = network(type("Expanded", (Context,), {"expanded": True}))
    for method in ("dtd", "lrp_epsilon_plus", "excitation_backprop"):
        found, expected = (sr.explain(one, clip, method, 2).relevance for one in (model, expanded))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    assert sr.explain(model, clip, "dtd", 2).relevance.sum() == pytest.approx(1, abs=1e-3)


class Masked(Network):
    def trunk(self, clip):
        low = super().trunk(clip)
        mask = torch.zeros_like(low)
        mask[:, :, 1, 5, 5] = 1
        return low * mask


def test_a_mask_passes_relevance_to_what_it_lets_through():
    model = network(Masked)
    with sr.build_method("dtd", model, record="relu2") as attributor:
        attributor(noise(), sr.one_hot(2, 5).double())
        reached = attributor.recorded["relu2"].sum(1)[0]
    assert reached[1, 5, 5] == pytest.approx(float(reached.sum()))
    assert reached.sum() == pytest.approx(1, abs=2e-3)


class Again(Network):
    """A layer that one forward calls twice."""

    def __init__(self, twice=True):
        super().__init__()
        self.conv2 = nn.Conv3d(4, 4, 3, padding=1)
        self.twin = self.conv2 if twice else copy.deepcopy(self.conv2)
        self.fc = nn.Linear(4, 5)

    def trunk(self, clip):
        return self.relu2(self.twin(self.relu2(self.conv2(self.relu1(self.conv1(clip))))))


def test_a_layer_that_is_called_twice_is_two_layers_to_rules():
    model, plain = network(Again), network(lambda: Again(twice=False))
    plain.load_state_dict(model.state_dict())
    clip = noise()
    for method in ("dtd", "lrp_alpha2_beta1"):
        found, expected = (sr.explain(one, clip, method, 2).relevance for one in (model, plain))
        np.testing.assert_array_equal(found, expected)


class Gates(Network):
    def trunk(self, clip):
        low = super().trunk(clip)
        return low * low.mean((2, 3, 4), keepdim=True).sigmoid()


def test_what_no_rule_sees_is_refused_or_listed():
    model, clip = network(Gates), noise()
    with pytest.raises(sr.InputError, match=r"Gates: mul of two tensors .*; gradient, gradcam and occlusion"):
        sr.explain(model, clip, "dtd")
    explanation = sr.explain(model, clip, "dtd", strict=False)
    assert len(explanation.unseen) == 1
    assert explanation.unseen[0].startswith(
        "Gates: mul of two tensors multiplies relevance by either: use selrel_zennit"
    )
    attributor = sr.build_method("dtd", model, strict=False)
    attributor(clip, sr.one_hot(2, 5).double())
    assert attributor.info["unseen"] == list(explanation.unseen)
    assert sr.explain(model, clip, "gradient").unseen == ()


def test_a_composite_whose_rules_take_nothing_is_no_method():
    with pytest.raises(sr.InputError, match="NameMapComposite gives no module of the network a rule"):
        Gradient(network(Network), NameMapComposite([]))(noise(), sr.one_hot(0, 5).double())


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
