"""Kinds of networks that cannot be explained: refused in one sentence with a remedy, by every way in."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import selrel_zennit as sr
from plain_network import FRAMES, SPEC, Pair, Plain, inferred, made
from selrel_deploy import compile_explanation
from selrel_zennit.calibration.stills import synthetic_stills
from selrel_zennit.cli import main
from selrel_zennit.lint.linter import lint
from selrel_zennit.pipeline import explain_video

# torch's own words on what these networks are: deprecated, or without a gradient.
pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.(ao.quantization|quantize_per_tensor)",
    "ignore:.torch.jit",
    "ignore:None of the inputs have requires_grad",
    "ignore:Using .torch.compile:UserWarning",
)


@pytest.fixture
def clip():
    return SPEC.clip(FRAMES[:4])


class Holder(nn.Module):
    """A network inside another module."""

    spec, cam_layer = SPEC, "inner.relu2"

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, clip):
        return self.inner(clip)


class PerFrame(Plain):
    def forward(self, clip):
        return super().forward(clip)[:, None].expand(-1, 4, -1)


class Index(Plain):
    def forward(self, clip):
        return super().forward(clip).argmax(1)


class Nothing(Plain):
    def forward(self, clip):
        super().forward(clip)


class Stem(Plain):
    """Its first convolution has no gradient."""

    def trunk(self, clip):
        with torch.no_grad():
            low = self.relu1(self.conv1(clip))
        return self.relu2(self.conv2(low))


class HalfStem(Plain):
    """Half of what its second convolution takes has no gradient: autograd alone would not notice."""

    def trunk(self, clip):
        low = self.relu1(self.conv1(clip))
        with torch.no_grad():
            frozen = self.relu1(self.conv1(clip))
        return self.relu2(self.conv2(low * 0.5 + frozen * 0.5))


class NoGradient(Plain):
    @torch.no_grad()
    def forward(self, clip):
        return super().forward(clip)


class InferenceInside(Plain):
    def trunk(self, clip):
        with torch.inference_mode():
            low = self.conv1(clip)
        return self.relu2(self.conv2(self.relu1(low)))


class Reentrant(Plain):
    def trunk(self, clip):
        return checkpoint(super().trunk, clip, use_reentrant=True)


class TimeFirst(Plain):
    """Takes [B,T,C,H,W], as the video transformers of transformers do, and says so in words of its own."""

    def forward(self, clip):
        if clip.shape[2] != 3:
            raise ValueError("Make sure that the channel dimension of the pixel values matches the configuration.")
        return super().forward(clip.transpose(1, 2))


class ChannelsLast(Plain):
    def forward(self, clip):
        return super().forward(clip.permute(0, 4, 1, 2, 3))


class TwoInputs(Plain):
    def forward(self, slow, fast):
        return super().forward(slow) + super().forward(fast)


class WrongSize(Plain):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(7, 5)


class InPlace(Plain):
    def forward(self, clip):
        clip -= 3
        return super().forward(clip)


def scripted():
    return Holder(torch.jit.script(made()))


def traced():
    return Holder(torch.jit.trace(made(), SPEC.clip(FRAMES[:4])))


def exported():
    return Holder(torch.export.export(made(), (SPEC.clip(FRAMES[:4]),)).module())


def quantised():
    quantised = torch.ao.quantization.quantize_dynamic(made(), {nn.Linear}, dtype=torch.qint8)
    return quantised.eval()


def lazy():
    model = made()
    model.fc = nn.LazyLinear(5)
    return model.eval()


# kind → the network, what is said of it, what is said to do
KINDS = {
    "a pair": (Pair, r"must return logits \[B,K\], got tuple \(0: \[\d, 5\], 1: \[", r"output=0\), .* --output 0$"),
    "per frame": (PerFrame, r"got float32 \[\d, 4, 5\] for \d clips?:", r"averages .* network\(clip\)\.mean\(1\)$"),
    "an index": (Index, r"got int64 \[\d\]", "wrap it in a forward that returns one row of scores"),
    "nothing": (Nothing, "got NoneType", "wrap it in a forward"),
    "TorchScript": (scripted, "inner is a TorchScript program", r"weights=program\.state_dict\(\)"),
    "traced TorchScript": (traced, "inner is a TorchScript program", r"weights=program\.state_dict\(\)"),
    "torch.export": (exported, r"inner is a program of torch\.export", "the network that it was exported from"),
    "quantised": (quantised, r"fc is quantised \(Linear\)", "as it was before, in float32; occlusion"),
    "no_grad stem": (Stem, "no gradient", r"leave torch\.no_grad\(\), .* out of its forward"),
    "no_grad half": (HalfStem, "HalfStem takes in values computed without a gradient", r"leave torch\.no_grad\(\)"),
    "no_grad": (NoGradient, "no gradient", r"leave torch\.no_grad\(\)"),
    "inference inside": (InferenceInside, "gradient", "out of it"),
    "reentrant": (Reentrant, "", "use_reentrant"),
    "time first": (TimeFirst, r"takes clips \[B,T,C,H,W\]", r"network\(clip\.permute\(0, 2, 1, 3, 4\)\)"),
    "channels last": (ChannelsLast, r"takes clips \[B,T,H,W,C\]", r"network\(clip\.permute\(0, 2, 3, 4, 1\)\)"),
    "two inputs": (TwoInputs, r"does not run on a clip \(\d, 3, 4, 16, 16\) \(TypeError", "takes the clip alone"),
    "another size": (WrongSize, r"does not run on a clip .*RuntimeError: mat1 and mat2", r"set model\.spec"),
    "in place": (InPlace, "works in place on the clip", "write x = x - mean"),
    "lazy": (lazy, r"fc\.weight has no values yet", r"run the network once on a clip, model\(clip\)"),
}

WAYS = {
    "explain": lambda model, clip, method: sr.explain(model, clip, method),
    "versus": lambda model, clip, method: sr.versus(model, clip, method),
    "lint": lambda model, clip, method: lint(model, "dtd" if method == "gradient" else method, clip),
    "compile": lambda model, clip, method: compile_explanation(sr.build_method(method, model), clip),
    "all clips": lambda model, clip, method: explain_video(model, FRAMES, method, all_clips=True),
    "calibrate": lambda model, clip, method: sr.calibrate(model, method, synthetic_stills(SPEC, 4, 2), alphas=(0.1,)),
}
# With the plain gradient alone these are explained, by every way.
GRADIENT_TAKES = ("TorchScript", "traced TorchScript")


def refused(kind, act):
    """Hold what ``act`` raises against the table."""
    with pytest.raises(sr.InputError) as caught:
        act()
    check_words(kind, str(caught.value))


def check_words(kind, said):
    _, what, remedy = KINDS[kind]
    assert "\n" not in said
    assert len(said) < 420
    assert re.search(what, said), said
    assert re.search(remedy, said), said


def of(kind):
    build = KINDS[kind][0]
    return made(build) if isinstance(build, type) else build()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_in_refuses_with_the_remedy(kind, way, clip):
    if kind in ("no_grad half", "in place"):
        # dtd rewrites the forward, and what it gives there is right; the gradient would not be.
        if way == "lint":
            return
        refused(kind, lambda: WAYS[way](of(kind), clip, "gradient"))
    else:
        refused(kind, lambda: WAYS[way](of(kind), clip, "dtd"))


COMMANDS = {
    "explain": ["explain", "--out", "out"],
    "all clips": ["explain", "--all-clips", "--out", "out"],
    "versus": ["explain", "--versus", "runner-up", "--out", "out"],
    "lint": ["lint"],
    "calibrate": ["calibrate", "--n-clips", "4", "--held-out", "2", "--alpha", "0.1", "--out", "out"],
    "export": ["export", "--out", "out.onnx"],
    "bench": ["bench", "--runners", "eager", "--rounds", "2"],
}
ON_THE_COMMAND_LINE = {
    "a pair": "Pair",
    "TorchScript": "scripted",
    "torch.export": "exported",
    "quantised": "quantised",
    "no_grad stem": "Stem",
    "reentrant": "Reentrant",
    "time first": "TimeFirst",
    "two inputs": "TwoInputs",
}


@pytest.fixture
def at_hand(tmp_path, monkeypatch):
    """Run in an empty folder, with this module to be found by its name."""
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ON_THE_COMMAND_LINE)
def test_every_command_refuses_in_one_line_with_exit_code_2(kind, command, at_hand, capsys):
    first, *rest = COMMANDS[command]
    named = f"test_kinds_of_networks:{ON_THE_COMMAND_LINE[kind]}"
    assert main([first, "--model", named, "--weights", "own", *rest]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1
    assert printed[0].startswith("selrel: error: ")
    check_words(kind, printed[0])
    assert not list(at_hand.iterdir())


# --- what needs less than others takes what they do not ---


@pytest.mark.parametrize("build", [scripted, traced])
@pytest.mark.parametrize("method", ["gradient", "integrated_gradients", "occlusion"])
def test_torchscript_is_explained_by_methods_without_rules_or_hooks(build, method, clip):
    found = sr.explain(build().eval(), clip, method, 2)
    torch.testing.assert_close(found.relevance, sr.explain(made(), clip, method, 2).relevance, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("build", [quantised, lambda: made(Stem), lambda: made(Reentrant), inferred])
def test_occlusion_needs_no_gradient(build, clip):
    """By hand: one window of the middle, covered with the mean."""
    model = build()
    found = sr.explain(model, clip, "occlusion", 2, window=(4, 16, 16)).relevance
    with torch.no_grad():
        drop = (model(clip) - model(torch.zeros_like(clip)))[0, 2]
    np.testing.assert_allclose(found, np.full((1, 4, 16, 16), float(drop)), rtol=1e-5)
