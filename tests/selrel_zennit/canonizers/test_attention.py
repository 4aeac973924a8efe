"""AttnLRP on torchvision's video transformers: one attention by hand, what each rule conserves, and no trace left."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.video.swin_transformer import SwinTransformer3d
from zennit.attribution import Gradient
from zennit.core import Composite
from zennit.layer import Sum

import selrel_zennit as sr
from networks import snapshot
from selrel_zennit.canonizers.attention import AttentionCanonizer, Product, Softmax
from selrel_zennit.canonizers.batch_norm import VideoCanonizer
from selrel_zennit.composites import AttnLRPEpsilonPlus
from selrel_zennit.lint.linter import lint
from selrel_zennit.models.initialise import kaiming

SPEC = sr.ClipSpec(frames=4, short_side=16, crop=16)
EPSILON = 1e-6


def swin(window=(2, 2, 2)):
    """Two stages, with shifted windows and a merge of patches between."""
    return drawn(SwinTransformer3d([2, 4, 4], 8, [2, 2], [2, 4], list(window), num_classes=5))


def mvit(residual_with_cls_embed=False):
    """Three blocks: pooled keys and values, pooled queries with more channels, and neither."""
    blocks = [
        MSBlockConfig(1, 8, 8, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        MSBlockConfig(2, 8, 16, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
        MSBlockConfig(2, 16, 16, [], [], [], []),
    ]
    settings = (True, residual_with_cls_embed, True, True)
    return drawn(MViT((16, 16), 4, blocks, *settings, num_classes=5, patch_embed_stride=(2, 4, 4)))


def drawn(model):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise * 0.2 if parameter.ndim > 1 else parameter.data + 0.1 * noise
    model.spec = SPEC
    return model.double().eval().requires_grad_(False)


def clips(batch=2):
    return torch.randn(batch, *SPEC.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("build", [swin, mvit])
def test_methods_without_rules(build):
    """Gradient and occlusion take a transformer as it is."""
    model, clip = build(), clips(1)
    tracked = clip.clone().requires_grad_()
    model(tracked)[0, 2].backward()
    found = sr.build_method("gradient", model)(clip, sr.one_hot(2, 5).to(clip))[1]
    torch.testing.assert_close(found, tracked.grad, rtol=1e-9, atol=1e-12)
    covered = clip.clone()
    covered[:, :, :2, 8:, :8] = 0
    with sr.build_method("occlusion", model, window=(2, 8, 8)) as attributor:
        drops = attributor(clip, sr.one_hot(2, 5).to(clip))[1].sum(1)
    torch.testing.assert_close(drops[0, 0, 9, 3], (model(clip) - model(covered))[0, 2], rtol=1e-9, atol=1e-12)


NETWORKS = {
    "swin": swin,
    "swin, padded windows": lambda: swin((3, 3, 3)),
    "mvit": mvit,
    "mvit, class token in shortcuts": lambda: mvit(True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_taken_apart_it_computes_the_same(name):
    model = NETWORKS[name]()
    before, names = snapshot(model, clips()), [key for key, _ in model.named_modules()]
    canonizer = AttentionCanonizer()
    expected = model(clips())
    instances = canonizer.apply(model)
    assert len(instances) == (3 if name.startswith("mvit") else 4)
    assert sum(isinstance(module, Product) for module in model.modules()) == 2 * len(instances)
    assert torch.equal(model(clips()), expected)
    assert canonizer.apply(model) == []
    for instance in reversed(instances):
        instance.remove()
    assert snapshot(model, clips()) == before
    assert [key for key, _ in model.named_modules()] == names
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("build", [swin, mvit])
def test_the_network_is_left_as_it_was(build):
    model = build()
    before = snapshot(model, clips())
    names = [key for key, _ in model.named_modules()]
    attributor = sr.build_method("lrp_epsilon_plus", model)
    with attributor:
        logits, relevance = attributor(clips(), torch.eye(5, dtype=torch.float64)[[1, 3]])
    torch.testing.assert_close(logits, model(clips()), rtol=1e-12, atol=1e-12)
    assert relevance.shape == clips().shape
    assert snapshot(model, clips()) == before

    def fails(logits):
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"), attributor:
        attributor(clips(), fails)
    assert snapshot(model, clips()) == before
    assert [key for key, _ in model.named_modules()] == names


def test_what_was_done_before_an_exception_is_undone(monkeypatch):
    model = swin()
    before, register, calls = snapshot(model, clips()), AttentionCanonizer.register, []

    def failing(self, *arguments):
        register(self, *arguments)
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("planted")

    monkeypatch.setattr(AttentionCanonizer, "register", failing)
    with pytest.raises(RuntimeError, match="planted"):
        AttentionCanonizer().apply(model)
    assert snapshot(model, clips()) == before


# --- by hand ---


def stable(value, epsilon=EPSILON):
    return value + torch.where(value < 0, -epsilon, epsilon)


def linear_by_hand(layer, values, relevance, with_bias=True):
    """R_j = x_j Σ_i W_ij R_i ÷ (z_i + ε)."""
    output = values @ layer.weight.T + (layer.bias if with_bias else 0)
    return values * ((relevance / stable(output)) @ layer.weight)


def plus_by_hand(layer, values, relevance, with_bias=True):
    """R_j = Σ_i (x_j W_ij)⁺ R_i ÷ (Σ_k (x_k W_ik)⁺ + b_i⁺ + ε): every contribution by itself."""
    parts = (values[:, None, :] * layer.weight[None]).clamp(min=0)
    total = parts.sum(2) + (layer.bias.clamp(min=0) if with_bias else 0)
    return (parts * (relevance / stable(total))[:, :, None]).sum(1)


class Below(nn.Module):
    """A part of a network of four outputs, with a class layer registered behind it but not run."""

    def __init__(self, part):
        super().__init__()
        self.part, self.head = part, nn.Linear(1, 4)

    def forward(self, values):
        return self.part(values)


@pytest.mark.parametrize("gamma", [None, 0])
@pytest.mark.parametrize("zero_params", [None, "bias"])
def test_an_attention_of_windows_by_hand(zero_params, gamma):
    """All windows of one layer, query by query in plain sums: no hooks, no autograd."""
    attention = swin().features[0][1].attn
    by_hand = linear_by_hand if gamma == 0 else plus_by_hand
    network = Below(attention)
    assert sum(attention.shift_size) > 0
    generator = torch.Generator().manual_seed(2)
    values, arriving = (torch.randn(1, 4, 4, 4, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    composite = AttnLRPEpsilonPlus(EPSILON, EPSILON, zero_params, [AttentionCanonizer()], gamma)
    with Gradient(network, composite) as attributor:
        output, found = attributor(values, arriving)

    with_bias, scale = zero_params is None, (8 // 2) ** -0.5
    table = attention.get_relative_position_bias([2, 2, 2])[0]
    rolled, rolled_arriving = (value.roll((-1, -1, -1), (1, 2, 3))[0] for value in (values, arriving))
    expected, made = torch.zeros_like(rolled), torch.zeros_like(rolled)
    for corner in torch.cartesian_prod(*[torch.arange(0, 4, 2)] * 3).tolist():
        places = tuple(slice(start, start + 2) for start in corner)
        tokens, into = rolled[places].reshape(8, 8), rolled_arriving[places].reshape(8, 8)
        # Tokens that were no neighbours before the shift do not see each other: each side of the seam is a region.
        local = torch.cartesian_prod(*[torch.arange(2)] * 3)
        region = [
            tuple(int(offset) if start == 2 else 0 for start, offset in zip(corner, place, strict=True))
            for place in local
        ]
        mask = torch.tensor([[0.0 if a == b else -100.0 for b in region] for a in region], dtype=torch.float64)
        qkv = (tokens @ attention.qkv.weight.T + attention.qkv.bias).reshape(8, 3, 2, 4)
        mixed, held = torch.zeros(8, 2, 4, dtype=torch.float64), []
        for head in range(2):
            q, k, v = qkv[:, 0, head], qkv[:, 1, head], qkv[:, 2, head]
            product = scale * q @ k.T
            scores = product + table[head] + mask
            weights = scores.exp() / scores.exp().sum(1, keepdim=True)
            mixed[:, head] = weights @ v
            held.append((q, k, v, product, scores, weights))
        made[places] = (mixed.reshape(8, 8) @ attention.proj.weight.T + attention.proj.bias).reshape(2, 2, 2, 8)
        into = by_hand(attention.proj, mixed.reshape(8, 8), into, with_bias).reshape(8, 2, 4)
        back = torch.zeros(8, 3, 2, 4, dtype=torch.float64)
        for head, (q, k, v, product, scores, weights) in enumerate(held):
            of_weights = torch.zeros(8, 8, dtype=torch.float64)
            for j in range(8):
                for i in range(8):
                    share = weights[j, i] * v[i] * into[j, head] / stable(2 * mixed[j, head])
                    of_weights[j, i] = share.sum()
                    back[i, 2, head] += share
            of_scores = scores * (of_weights - weights * of_weights.sum(1, keepdim=True))
            whole = scores if with_bias else product
            for j in range(8):
                for i in range(8):
                    share = scale * q[j] * k[i] * of_scores[j, i] / stable(2 * whole[j, i])
                    back[j, 0, head] += share
                    back[i, 1, head] += share
        expected[places] = by_hand(attention.qkv, tokens, back.reshape(8, 24), with_bias).reshape(2, 2, 2, 8)
    torch.testing.assert_close(output, made.roll((1, 1, 1), (0, 1, 2))[None], rtol=1e-12, atol=1e-12)
    expected = expected.roll((1, 1, 1), (0, 1, 2))[None]
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_positions_that_the_query_is_multiplied_with_hand_all_to_the_query():
    """Scores of MViT: q·k + q·p. Half of the first share goes to each factor, the second to q alone."""
    generator = torch.Generator().manual_seed(0)
    query, key, positions = (torch.randn(1, 1, n, 3, dtype=torch.float64, generator=generator) for n in (4, 5, 5))
    relevance = torch.randn(1, 1, 4, 5, dtype=torch.float64, generator=generator)

    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = Product(0.5, transposed=True)

        def forward(self, both):
            self.scores.added = lambda query: query @ positions.transpose(-2, -1)
            return self.scores(both[..., :4, :], both[..., 4:, :])

    with Gradient(Scores(), AttnLRPEpsilonPlus(EPSILON)) as attributor:
        _, found = attributor(torch.cat([query, key], 2), relevance)
    of_query, of_key = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64)
    q, k, p = query[0, 0], key[0, 0], positions[0, 0]
    for j in range(4):
        for i in range(5):
            share = relevance[0, 0, j, i] / stable(2 * (0.5 * q[j] @ k[i] + q[j] @ p[i]))
            of_query[j] += q[j] * (0.5 * k[i] + 2 * p[i]) * share
            of_key[i] += 0.5 * q[j] * k[i] * share
    torch.testing.assert_close(found[0, 0], torch.cat([of_query, of_key]), rtol=1e-9, atol=1e-9)


def test_softmax_is_its_taylor_expansion():
    """R_i = x_i Σ_j ∂s_j/∂x_i R_j/s_j, the expansion at x with relevance as the output's multiple (Jacobian)."""
    generator = torch.Generator().manual_seed(0)
    scores, relevance = (torch.randn(3, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    composite: Composite = AttnLRPEpsilonPlus()
    with Gradient(nn.Sequential(Softmax()), composite) as attributor:
        _, found = attributor(scores, relevance)
    for row in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda x: functional.softmax(x, 0), scores[row])
        expected = scores[row] * (jacobian.T @ (relevance[row] / scores[row].softmax(0)))
        torch.testing.assert_close(found[row], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma", [None, 0, 0.25])
def test_which_rule_stands_where(gamma):
    """The class layer ε, the first convolution z⁺, all behind it z⁺, γ or ε; sums by magnitude with z⁺ alone."""
    inner = {None: "ZPlus", 0: "Epsilon", 0.25: "Gamma"}[gamma]
    for model, head, first in ((swin(), "head", "patch_embed.proj"), (mvit(), "head.1", "conv_proj")):
        composite = AttnLRPEpsilonPlus(canonizers=[AttentionCanonizer(), VideoCanonizer()], gamma=gamma)
        flows = lint(model, Gradient(model, composite)).flows
        rules = {flow.module: flow.rule for flow in flows if flow.kind in ("Linear", "Conv3d")}
        assert (rules.pop(head), rules.pop(first)) == ("Epsilon", "ZPlus")
        assert set(rules.values()) == {inner}
        assert {flow.rule for flow in flows if flow.kind == "Sum"} == {"SumByMagnitude" if gamma is None else "Norm"}


@pytest.mark.parametrize("gamma", [-0.1, float("inf"), float("nan"), "x", "0.25", True, [0.25]])
def test_gamma_is_a_finite_number(gamma):
    with pytest.raises(sr.InputError, match="gamma must be 0 or more"):
        AttnLRPEpsilonPlus(gamma=gamma)


class Early(nn.Module):
    """A Swin that registers its class layer before all others."""

    def __init__(self):
        super().__init__()
        self.classes = nn.Linear(16, 5)
        self.body = swin()
        self.body.head = nn.Identity()

    def forward(self, clip):
        return self.classes(self.body(clip))


def test_a_class_layer_that_is_registered_early_is_seen_to_give_the_logits():
    model = Early().double().eval().requires_grad_(False)
    model.spec = SPEC
    for head in (None, "classes"):
        composite = AttnLRPEpsilonPlus(canonizers=[AttentionCanonizer(), VideoCanonizer()], head=head)
        flows = lint(model, Gradient(model, composite)).flows
        rules = {flow.module: flow.rule for flow in flows if flow.kind == "Linear"}
        assert rules.pop("classes") == "Epsilon"
        assert set(rules.values()) == {"ZPlus"}
    with pytest.raises(sr.InputError, match="no linear layer or convolution 'clases'"):
        lint(model, Gradient(model, AttnLRPEpsilonPlus(head="clases")))
    with pytest.raises(
        sr.InputError, match=r"'body\.features\.0.*' does not give the logits: the class layer is classes"
    ):
        lint(model, Gradient(model, AttnLRPEpsilonPlus(head="body.features.0.0.attn.proj")))


def test_a_sum_shares_by_magnitude():
    summands = torch.tensor([[3.0, -1.0], [-2.0, -2.0], [1.0, -1.0], [0.0, 0.0], [0.0, 5.0]])
    with Gradient(nn.Sequential(Sum()), AttnLRPEpsilonPlus()) as attributor:
        _, found = attributor(summands, torch.tensor([4.0, -2.0, 6.0, 1.0, 7.0]))
    torch.testing.assert_close(found, torch.tensor([[3.0, 1.0], [-1.0, -1.0], [3.0, 3.0], [0.5, 0.5], [0.0, 7.0]]))


# --- conservation ---


@pytest.mark.parametrize("gamma", [None, 0, 0.25])
@pytest.mark.parametrize("build", [swin, mvit])
def test_what_each_rule_conserves(build, gamma):
    """Without biases, and with a vanishing ε, every rule but those of softmax and class token hands on all it gets.

    z⁺ has nothing to share by where all contributions to a unit are negative, which happens with so few channels.
    """
    model, canonizers = build(), [AttentionCanonizer(), VideoCanonizer()]
    report = lint(model, Gradient(model, AttnLRPEpsilonPlus(1e-12, 1e-12, "bias", canonizers, gamma)))
    sums = {"SumByMagnitude", "ZPlus"} if gamma is None else {"Norm", "Epsilon" if gamma == 0 else "Gamma", "ZPlus"}
    assert {"BilinearEpsilon", "SoftmaxTaylor", "Pass", "Epsilon"} | sums <= {flow.rule for flow in report.flows}
    largest = max(abs(flow.before) for flow in report.flows)
    for flow in report.flows:
        if flow.rule not in ("SoftmaxTaylor", "ClassToken", "ZPlus"):
            assert abs(flow.before - flow.after) <= 1e-6 * largest, flow
    # The constant of the expansion takes a share that is no rounding error, and the sum is what is left.
    assert abs(report.absorbed) > 1e-3
    # Nothing is lost between modules; what is rounded off grows with the relevance.
    assert report.conserved + sum(flow.lost for flow in report.flows) == pytest.approx(1, abs=1e-9 * largest)
    if gamma is not None:
        assert report.findings == []
        assert report.passed


@pytest.mark.parametrize("gamma", [None, 0, 0.25])
def test_relevance_keeps_its_size_with_random_weights(gamma):
    """The depth and widths of swin3d_t. With the ε-rule in every layer Σ|R| reaches 1e6 and single precision fails."""
    spec = sr.ClipSpec(frames=4, short_side=32, crop=32)
    model = sr.load_model("swin3d_t", weights="random", num_classes=5, spec=spec)
    clip = torch.randn(1, *spec.shape, generator=torch.Generator().manual_seed(1))
    composite = AttnLRPEpsilonPlus(canonizers=[AttentionCanonizer(), VideoCanonizer()], gamma=gamma)
    with Gradient(model, composite) as attributor:
        size = float(attributor(clip, sr.one_hot(2, 5))[1].abs().sum())
    if gamma == 0:
        assert size > 1e5
    else:
        assert size < 10
        report = lint(model, "lrp_epsilon_plus", clip)
        assert report.findings == []
        assert report.passed


def test_gamma_tells_classes_better_apart_than_z_plus():
    """The mean |cosine| between the maps of five classes, in narrow Swins of four stages with random weights."""
    spec = sr.ClipSpec(frames=4, short_side=32, crop=32)
    likeness = {None: [], 0.25: []}
    for seed in range(4):
        model = SwinTransformer3d([2, 4, 4], 24, [1] * 4, [2, 4, 8, 16], [2, 4, 4], num_classes=5).double()
        kaiming(model, seed)
        model.eval().requires_grad_(False)
        clip = torch.randn(1, *spec.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for gamma, found in likeness.items():
            composite = AttnLRPEpsilonPlus(canonizers=[AttentionCanonizer(), VideoCanonizer()], gamma=gamma)
            with Gradient(model, composite) as attributor:
                _, maps = attributor(clip.expand(5, -1, -1, -1, -1), torch.eye(5, dtype=torch.float64))
            maps = functional.normalize(maps.sum(1).flatten(1), dim=1)
            found.append(float(((maps @ maps.T).abs().sum() - 5) / 20))
    z_plus, gamma = (sum(found) / 4 for found in likeness.values())
    assert z_plus > 0.9
    assert gamma < z_plus - 0.1


def test_what_padding_takes_is_said_to_lie_between_modules():
    """A merge of 3×3 patches pads them; the identity rule of the norm behind gives the padding a share."""
    model = drawn(SwinTransformer3d([2, 4, 4], 8, [2, 2], [2, 4], [2, 2, 2], num_classes=5))
    model.spec = sr.ClipSpec(frames=4, short_side=12, crop=12)
    composite = AttnLRPEpsilonPlus(1e-12, 1e-12, "bias", [AttentionCanonizer(), VideoCanonizer()], 0.25)
    report = lint(model, Gradient(model, composite))
    between = report.conserved + sum(flow.lost for flow in report.flows) - 1
    assert abs(between) > 0.01
    (finding,) = report.findings
    assert f"; between modules {between:+.1%}" in finding.message


def test_other_methods_with_rules_say_what_does():
    with pytest.raises(sr.InputError, match="LayerNorm"):
        sr.build_method("dtd", swin())
