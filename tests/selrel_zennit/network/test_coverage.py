"""Every way to write a network is seen by the rules as what it computes, or refused; DTD is compared by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zennit.composites import EpsilonGammaBox, NameMapComposite

import selrel_zennit as sr
from by_hand import MEAN, RAW, SCALED, SPEC, STD, Context, Network, assert_dtd, bounds, network, noise, z_box
from selrel_zennit.attribution import Gradient
from selrel_zennit.network.paths import paths_of

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


class Both(Network):
    """Gives the class layer's answer, and twice of it."""

    def forward(self, clip):
        answer = super().forward(clip)
        return {"twice": answer * 2, "logits": answer}


def test_what_is_returned_is_read_by_whoever_called():
    assert_dtd(sr.load_model(network(Both), output="logits"), noise(), network(Network))


def test_z_box_in_a_layer_that_does_not_see_the_clip_is_refused():
    """Zennit's composite gives it to the convolution that is registered first."""
    low, high = (torch.from_numpy(end.copy()).double() for end in SPEC.bounds())
    clip = noise()
    sr.explain(network(Network), clip, EpsilonGammaBox(low, high))
    with pytest.raises(sr.InputError, match=r"conv2: z\^B stands in a layer that does not see the clip \(and 1 more\)"):
        sr.explain(network(StemLast), clip, EpsilonGammaBox(low, high))
    model = network(TwoStems)
    with pytest.raises(sr.InputError, match=r"fast: convolution sees the clip, and its rule is not z\^B; gradient"):
        sr.explain(model, noise(model.spec), EpsilonGammaBox(low, high))
    assert len(sr.explain(model, noise(model.spec), EpsilonGammaBox(low, high), strict=False).unseen) == 1


class Activated(nn.Conv3d):
    def forward(self, values):
        return super().forward(values).relu()


class Shifted(nn.Conv3d):
    def forward(self, values):
        return super().forward(values) + 0.5


class Around(nn.Conv3d):
    def forward(self, values):
        return super().forward(values) + values[:, :1]


class Rolling(nn.ReLU):
    def forward(self, values):
        return super().forward(values).roll(1, 2)


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -0.5 * gradient


class Reverses(Network):
    def trunk(self, clip):
        return Reversal.apply(super().trunk(clip))


class WritesIntoView(Network):
    def trunk(self, clip):
        low = super().trunk(clip)
        if low.sum() > -1e9:
            low = low.clone()
            low[:, :2].exp_()
        return low


class Accumulates(Network):
    def trunk(self, clip):
        low = super().trunk(clip)
        return torch.zeros_like(low).index_put((torch.zeros(len(low), dtype=torch.long),), low, accumulate=True)


def with_layer(kind):
    def build():
        model = Network()
        model.conv2.__class__ = kind
        return model

    return build


def with_hook(hook):
    def build():
        model = Network()
        model.conv2.register_forward_hook(hook)
        return model

    return build


def rolling():
    model = Network()
    model.relu2 = Rolling()
    return model


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (with_layer(Activated), "conv2: relu is done inside a layer"),
        (with_layer(Shifted), "conv2: add is done inside a layer"),
        (with_layer(Around), "conv2: add is done inside a layer"),
        (rolling, "relu2: .* is done by a Rolling"),
        (with_hook(lambda module, args, output: output.roll(1, 2)), "conv2: a hook of the network's own changes"),
        (Reverses, "the network: Reversal has a derivative of its own"),
        (WritesIntoView, "WritesIntoView: exp is seen by no rule"),
        (Accumulates, "Accumulates: index_put is seen by no rule"),
    ],
)
def test_what_a_rule_would_not_run_is_refused(build, sentence):
    with pytest.raises(sr.InputError, match=sentence):
        sr.explain(network(build), noise(), "lrp_epsilon_plus")


class Keeps(Network):
    """Keeps a running mean, and what it saw, on itself."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def trunk(self, clip):
        low = super().trunk(clip)
        self.mean = 0.9 * self.mean + 0.1 * low.detach().mean()
        self.seen = low
        return self.seen


def test_a_forward_that_keeps_things_is_explained_and_keeps_none_of_the_explanations():
    model = network(Keeps)
    plain = network(Network)
    found, expected = (sr.explain(one, noise(), "dtd", 2).relevance for one in (model, plain))
    np.testing.assert_array_equal(found, expected)
    assert model.mean == 0
    assert not hasattr(model, "seen")


class Branches(Network):
    def trunk(self, clip):
        low = super().trunk(clip)
        return low * low.sigmoid() if clip.mean() > 0 else low


def test_every_clip_is_looked_at_where_a_network_decides_by_values():
    with sr.build_method("dtd", network(Branches)) as attributor:
        for _ in range(2):
            attributor(-noise().abs(), sr.one_hot(0, 5).double())
        with pytest.raises(sr.InputError, match="Branches: sigmoid is seen by no rule"):
            attributor(noise().abs(), sr.one_hot(0, 5).double())
