"""Networks that cannot be explained as they are: one sentence each, which says what does, by every way in."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import selrel_zennit as sr
from selrel_zennit.cli import main
from selrel_zennit.lint.linter import lint

SPEC = sr.ClipSpec(frames=4, short_side=16, crop=16)


class Network(nn.Module):
    """A residual network that is all right; its parts are what the others change."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv3d(3, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm3d(4)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv3d(4, 4, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.end = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 5))
        self.spec = SPEC
        self.cam_layer = "relu2"

    def middle(self, values):
        return self.relu2(self.conv2(values) + values)

    def forward(self, clip):
        return self.end(self.drop(self.middle(self.relu1(self.norm1(self.conv1(clip))))))


class Pictures(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.spec = SPEC


class ActiveDropout(Network):
    def middle(self, values):
        return F.dropout(super().middle(values), 0.2)


class ActiveDropoutInPlace(Network):
    def middle(self, values):
        return torch.dropout_(super().middle(values), 0.2, True)


class Decides(Network):
    def middle(self, values):
        return self.relu2(self.conv2(values) + values if values.sum() > -1e9 else values)


class Loops(Network):
    def middle(self, values):
        frames = [self.conv2(values)[:, :, index] for index in range(values.shape[2])]
        return self.relu2(torch.stack(frames, 2) + values)


class Measures(Network):
    def middle(self, values):
        return self.relu2(self.conv2(values) + values if len(values) else values)


class Weighs(Network):
    def middle(self, values):
        return self.relu2(torch.add(self.conv2(values), other=values, alpha=2))


class DecidesOnly(Network):
    """Decides by value and adds nothing there: nothing is hidden from rules."""

    def middle(self, values):
        return self.relu2(self.conv2(values)) if values.sum() > -1e9 else values


class Attends(Network):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def middle(self, values):
        tokens = values.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens)[0].transpose(1, 2).unflatten(2, values.shape[2:])


class HalfGuided(Network):
    """One ReLU is a module, one a function."""

    def middle(self, values):
        return torch.relu(values)


class Folded(nn.Module):
    """A 2D network that folds time into the batch: it takes clips."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.pool, self.flatten, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
        self.spec = SPEC

    def forward(self, clip):
        frames = clip.transpose(1, 2).flatten(0, 1)
        each = self.fc(self.flatten(self.pool(self.relu(self.norm(self.conv(frames))))))
        return each.unflatten(0, clip.shape[::2][:2]).mean(1)


def training():
    return network(Network).train()


def dropout_left_on():
    model = network(Network)
    model.drop.train()
    return model


def half():
    return network(Network).half()


def attends():
    return network(Attends)


def network(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval().requires_grad_(False)


@pytest.fixture
def noise():
    return torch.randn(1, *SPEC.shape, generator=torch.Generator().manual_seed(1)) * 60


# what is wrong → the network, a method that it concerns, the sentence, and a method that does, or None
FAULTS = {
    "pictures, dtd": (
        Pictures,
        "dtd",
        r"takes pictures, not clips \(0 is a Conv2d\): give it a forward that takes \[B",
        None,
    ),
    "pictures, gradient": (Pictures, "gradient", r"takes pictures, not clips .* folds time into the batch", None),
    "training": (training, "gradient", r"the model is in training mode: call model\.eval\(\)", None),
    "dropout in training mode": (
        dropout_left_on,
        "dtd",
        r"a part of the model is in training mode \(drop, a Dropout\): call model\.eval",
        None,
    ),
    "dropout as a function": (ActiveDropout, "gradient", r"dropout is active, .*: write nn\.Dropout", None),
    "dropout in place": (ActiveDropoutInPlace, "gradient", r"dropout is active, .*: write nn\.Dropout", None),
    "half": (
        half,
        "gradcam",
        r"in half precision \(conv1\.weight is torch\.float16\), .*: call model\.float\(\)",
        None,
    ),
    "control flow": (
        Decides,
        "dtd",
        r"no rule sees: Decides: add of two tensors .*: use zennit\.layer\.Sum, or a forward torch\.fx can trace",
        "gradient",
    ),
    "loop over a size": (
        Loops,
        "dtd",
        r"no rule sees: conv2: runs again .*\(and 1 more\); gradient, gradcam",
        "gradient",
    ),
    "length": (Measures, "lrp_epsilon_plus", "no rule sees: Measures: add of two tensors", "gradient"),
    "a multiple": (Weighs, "dtd", "no rule sees: Weighs: add of two tensors", "gradient"),
    "attention, dtd": (
        attends,
        "dtd",
        r"dtd has no rule for MultiheadAttention \(attention\): gradient, gradcam",
        "gradient",
    ),
    "attention, excitation": (
        attends,
        "excitation_backprop",
        "excitation_backprop has no rule for Multihead",
        "gradient",
    ),
    "no ReLUs": (
        lambda: network(lambda: nn.Sequential(nn.Conv3d(3, 4, 3), nn.Flatten())),
        "guided_backprop",
        r"guided rules need the network's ReLUs as modules.*; found none\. gradient and gradcam",
        None,
    ),
    "ReLUs of both kinds": (
        lambda: network(HalfGuided),
        "guided_backprop",
        "HalfGuided calls relu, a ReLU that guided rules do not see.*: use nn.ReLU. gradient and gradcam",
        "gradient",
    ),
}


def of(build):
    return network(build) if isinstance(build, type) else build()


@pytest.mark.parametrize("fault", FAULTS)
def test_explain_refuses_with_a_sentence_that_says_what_does(fault, noise):
    build, method, sentence, remedy = FAULTS[fault]
    model = of(build)
    clip = noise.half() if fault == "half" else noise
    with pytest.raises(sr.InputError, match=sentence) as caught:
        sr.explain(model, clip, method)
    assert "\n" not in str(caught.value)
    if remedy is not None:
        assert sr.explain(model, clip, remedy).relevance.shape == (1, 4, 16, 16)


# What concerns guided methods alone, and what the linter lists as a finding.
HIDDEN_SUMS = ("control flow", "loop over a size", "length", "a multiple")
NOT_LINTED = (*HIDDEN_SUMS, "no ReLUs", "ReLUs of both kinds")


@pytest.mark.parametrize("fault", [name for name in FAULTS if name not in NOT_LINTED])
def test_the_linter_refuses_in_the_same_words(fault, noise):
    build, _, sentence, _ = FAULTS[fault]
    sentence = sentence.replace("excitation_backprop", "dtd")
    with pytest.raises(sr.InputError, match=sentence):
        lint(of(build), "dtd", noise.half() if fault == "half" else noise)


@pytest.mark.parametrize("fault", HIDDEN_SUMS)
def test_the_linter_names_a_hidden_sum_that_explain_refuses(fault, noise):
    assert "addition" in {finding.kind for finding in lint(of(FAULTS[fault][0]), "dtd", noise).findings}


def test_a_hidden_sum_is_refused_by_every_way_to_relevance(noise):
    model = network(Loops)
    attributor = sr.build_method("dtd", model)
    for called in (attributor, sr.Selective(attributor)):
        with pytest.raises(sr.InputError, match="part of which no rule sees"):
            called(noise, sr.one_hot(0, 5))
        assert "forward" not in vars(model)
    with attributor, pytest.raises(sr.InputError, match="part of which no rule sees"):
        attributor(noise, sr.one_hot(0, 5))


def test_a_forward_that_decides_and_adds_nothing_is_explained(noise):
    model = network(DecidesOnly)
    assert sr.explain(model, noise, "dtd").relevance.sum() == pytest.approx(1, abs=1e-4)


def test_a_clip_on_another_device_is_named(noise):
    """The meta device stands for a GPU: it is another one on every machine."""
    model = network(Network)
    with pytest.raises(sr.InputError, match=r"the clip is on meta, the network on cpu: move one, clip\.to\('cpu'\)"):
        sr.build_method("gradient", model)(noise.to("meta"), sr.one_hot(0, 5))
    with pytest.raises(sr.InputError, match=r"the clip is on cpu, the network on meta: move one, clip\.to\('meta'\)"):
        lint(network(Network).to("meta"), "dtd_epsilon_head", noise)
    model.end.to("meta")
    with pytest.raises(sr.InputError, match=r"parts lie on cpu and meta: put all of it on one with model\.to"):
        sr.build_method("gradcam", model)(noise, sr.one_hot(0, 5))


def test_a_network_that_was_switched_to_training_after_the_method_was_built(noise):
    model = network(Network)
    attributor = sr.build_method("dtd", model)
    model.train()
    with pytest.raises(sr.InputError, match="in training mode"):
        attributor(noise, sr.one_hot(0, 5))


def test_dropout_that_is_off_is_none_of_the_matter(noise):
    class Off(Network):
        def middle(self, values):
            return F.dropout(F.dropout(super().middle(values), 0.0), 0.5, self.training)

    assert sr.explain(network(Off), noise, "dtd").relevance.sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("method", ["dtd", "lrp_epsilon_gamma_box", "gradient"])
def test_a_2d_network_that_folds_time_into_the_batch_is_explained(method, noise):
    """The box of z^B then is that of frames."""
    model = network(Folded)
    explanation = sr.explain(model, noise, method)
    assert explanation.relevance.shape == (1, 4, 16, 16)
    if method == "dtd":
        assert explanation.relevance.sum() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("command", "factory", "method", "sentence"),
    [
        ("explain", "Pictures", "dtd", "takes pictures, not clips"),
        ("explain", "ActiveDropout", "gradient", "dropout is active"),
        ("explain", "Decides", "dtd", "Decides: add of two tensors"),
        ("explain", "half", "dtd", "in half precision"),
        ("lint", "Pictures", "dtd", "takes pictures, not clips"),
        ("lint", "attends", "dtd", "has no rule for MultiheadAttention"),
    ],
)
def test_the_command_line_says_it_in_one_line(command, factory, method, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    arguments = [command, "--model", f"test_unfit_networks:{factory}", "--weights", "own", "--method", method]
    if command == "explain":
        arguments += ["--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1
    assert sentence in printed[0]
    assert not (tmp_path / "out").exists()


# --- Grad-CAM of transformers ---


def test_grad_cam_of_swin_lays_its_tokens_out(monkeypatch):
    """At its last norm, where the logits are linear: Σ_c weight·activation ÷ positions, ReLU, by hand."""
    spec = sr.ClipSpec(frames=4, short_side=64, crop=64)
    model = sr.load_model("swin3d_t", weights="random", num_classes=3, spec=spec)
    clip = torch.randn(1, *spec.shape, generator=torch.Generator().manual_seed(2))
    held = []
    handle = model.norm.register_forward_hook(lambda module, args, output: held.append(output))
    model(clip)
    handle.remove()
    tokens = held[0]
    assert tokens.shape == (1, 2, 2, 2, 768)
    expected = (tokens @ model.head.weight[1]).relu()[None] / 8
    expected = F.interpolate(expected, size=(4, 64, 64), mode="trilinear", align_corners=False)[0]
    found = torch.from_numpy(sr.explain(model, clip, "gradcam", 1).relevance)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        sr.InputError, match=r"layer 'features\.4' of this network holds tokens, .* CAM layer is 'norm'"
    ):
        sr.build_method("gradcam", model, layer="features.4")
    with pytest.raises(sr.InputError, match="guided rules need"):
        sr.build_method("guided_gradcam", model)
    with pytest.raises(sr.InputError, match="dtd has no rule for LayerNorm"):
        sr.build_method("dtd", model)


class Before(nn.Module):
    """Stands for the first fifteen blocks of MViT, which take long: gives the tokens that the last one gets."""

    tokens = torch.randn(1, 1 + 8 * 7 * 7, 768, generator=torch.Generator().manual_seed(2))

    def forward(self, values, size):
        return self.tokens, (8, 7, 7)


def test_grad_cam_of_mvit_drops_the_class_token():
    """By hand, from its last block's tokens and their gradient, one by one."""
    model = sr.load_model("mvit_v2_s", weights="random", num_classes=3)
    for index in range(15):
        model.blocks[index] = Before().eval()
    held = []

    def hold(module, args, output):
        held.append(output.detach().requires_grad_())
        return held[0]

    last = model.blocks[15]
    handle = last.norm1.register_forward_hook(hold)
    model.head(model.norm(last(Before.tokens, (8, 7, 7))[0])[:, 0])[0, 2].backward()
    handle.remove()
    tokens, gradient = held[0].detach()[0, 1:], held[0].grad[0, 1:]
    weights = gradient.mean(0)
    small = torch.stack([(token * weights).sum().relu() for token in tokens]).reshape(1, 1, 8, 7, 7)
    expected = F.interpolate(small, size=(16, 224, 224), mode="trilinear", align_corners=False)[0]
    assert expected.max() > 0
    found = torch.from_numpy(sr.explain(model, torch.zeros(1, *model.spec.shape), "gradcam", 2).relevance)
    assert (found - expected).abs().max() <= 1e-4 * expected.max()


def test_mvit_gives_its_last_block_what_the_test_above_stands_for():
    """The grid of the last block, from the strides of its patches and of every block's queries."""
    model = sr.load_model("mvit_v2_s", weights="random", num_classes=3)
    grid = [16 // 2, 224 // 4, 224 // 4]
    for block in list(model.blocks)[:-1]:
        stride = getattr(block.attn.pool_q, "pool", None)
        grid = [length // step for length, step in zip(grid, stride.stride if stride else (1, 1, 1), strict=True)]
    assert grid == [8, 7, 7]
    assert tuple(model.conv_proj.stride) == (2, 4, 4)
    assert model.blocks[15].norm1.normalized_shape == (768,)
