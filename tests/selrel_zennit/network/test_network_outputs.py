"""Networks with more outputs than logits, compiled, checkpointed, made under inference mode: right to the bit."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import selrel_zennit as sr
from plain_network import FRAMES, SPEC, Pair, Plain, inferred, made
from selrel_deploy import compile_explanation
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


@pytest.fixture
def at_hand(tmp_path, monkeypatch):
    """Run in an empty folder, with this module to be found by its name."""
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- outputs ---


@dataclasses.dataclass
class Output:
    features: torch.Tensor
    logits: torch.Tensor


class InDict(Plain):
    def forward(self, clip):
        return {"logits": super().forward(clip), "features": clip}


class InDataclass(Plain):
    def forward(self, clip):
        return Output(clip, super().forward(clip))


class Alone(Plain):
    def forward(self, clip):
        return (super().forward(clip),)


class Heads(Plain):
    def forward(self, clip):
        noun = super().forward(clip)
        return {"verb": noun.flip(1), "noun": noun}


METHODS = ("dtd", "dtd_epsilon_head", "dtd_contrastive", "gradcam", "guided_backprop", "gradient", "smoothgrad")


@pytest.mark.parametrize("build", [InDict, InDataclass, Alone])
def test_logits_are_taken_by_themselves(build, clip):
    model = made(build)
    for method in METHODS:
        found, expected = (sr.explain(one, clip, method, 2) for one in (model, made()))
        np.testing.assert_array_equal(found.logits, expected.logits)
        np.testing.assert_array_equal(found.relevance, expected.relevance)
    assert not model._forward_hooks
    assert lint(model, "dtd", clip).passed
    values = compile_explanation(sr.build_method("dtd", model), clip)(clip, torch.tensor([2]))
    np.testing.assert_allclose(values[2], sr.explain(made(), clip, "dtd", 2).relevance, rtol=1e-4, atol=1e-7)
    whole, plain = (explain_video(one, FRAMES, "dtd", all_clips=True).explanation for one in (model, made()))
    np.testing.assert_array_equal(whole.relevance, plain.relevance)


@pytest.mark.parametrize(
    ("build", "output"), [(Pair, 0), (Pair, -2), (Heads, "noun"), (Heads, 1), (InDataclass, "logits")]
)
def test_one_output_is_taken_by_its_place_or_name(build, output, clip):
    given = made(build)
    model = sr.load_model(given, output=output)
    assert torch.equal(model(clip), made()(clip))
    assert [name for name, _ in model.named_modules()] == [name for name, _ in given.named_modules()]
    assert list(model.state_dict()) == list(given.state_dict())
    assert (model.class_names, model.cam_layer, model.spec) == (Plain.class_names, "relu2", SPEC)
    for method, options in (("dtd", {"record": ["conv2"]}), ("gradcam", {}), ("dtd_epsilon_head", {})):
        found, expected = (sr.build_method(method, one, **options) for one in (copy.deepcopy(model), made()))
        for one in (found, expected):
            one.result = one(clip, sr.one_hot(2, 5))[1]
        assert torch.equal(found.result, expected.result)
        for name in options.get("record", ()):
            assert torch.equal(found.recorded[name], expected.recorded[name])


def test_an_output_that_is_not_there():
    for build, output, said in (
        (Pair, 5, r"no output 5: it returns tuple \(0: \[1, 5\], 1: \[1, 3, 4, 16, 16\]\); choose one of these"),
        (Heads, "verbs", r"no output 'verbs': it returns dict \(verb: \[1, 5\], noun: \[1, 5\]\)"),
        (Plain, 0, r"returns a single tensor \[1, 5\]: leave output \(--output\) out"),
    ):
        with pytest.raises(sr.InputError, match=said):
            sr.explain(sr.load_model(made(build), output=output), SPEC.clip(FRAMES[:4]), "dtd")
    with pytest.raises(sr.InputError, match="takes no hooks: wrap it"):
        sr.load_model(torch.jit.script(made()), output=0, spec=SPEC)


def test_the_command_line_takes_an_output_and_certifies_it(at_hand, capsys):
    """The factory takes no number of classes, and is drawn with a seed: both are known at the certificate."""
    named = ["--model", "test_network_outputs:Pair", "--weights", "own", "--seed", "3", "--output", "0"]
    assert main(["explain", *named, "--method", "dtd", "--out", "out"]) == 0
    saved = np.load("out/explanation.npz")
    model = sr.load_model(Pair, "own", seed=3, output=0)
    assert np.array_equal(saved["logits"], model(model.spec.clip(saved["frames"][0])).numpy())
    assert main(["lint", *named]) == 0
    assert main(["export", *named, "--method", "dtd", "--out", "pair.onnx"]) == 0
    assert main(["parity", "pair.onnx", "--against", "zennit"]) == 0
    assert "exact" in capsys.readouterr().out


# --- compiled, made under inference mode, checkpointed ---


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_network_is_explained_as_it_is_written(in_place, clip):
    model = made()
    if in_place:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    with torch.no_grad():
        model(clip)
    for method in METHODS:
        expected = sr.explain(made(), clip, method, 2).relevance
        np.testing.assert_array_equal(sr.explain(model, clip, method, 2).relevance, expected)
    assert lint(model, "dtd", clip).passed
    graph = compile_explanation(sr.build_method("dtd", model), clip)
    np.testing.assert_allclose(
        graph(clip, torch.tensor([2]))[2], sr.explain(made(), clip, "dtd", 2).relevance, rtol=1e-4, atol=1e-7
    )
    loaded = sr.load_model(model)
    np.testing.assert_array_equal(
        sr.explain(loaded, clip, "dtd", 2).relevance, sr.explain(made(), clip, "dtd", 2).relevance
    )


def test_a_part_that_is_compiled(clip):
    model = made()
    model.pool = torch.compile(model.pool, backend="eager")
    with torch.no_grad():
        model(clip)
    for method in ("gradient", "gradcam"):
        expected = sr.explain(made(), clip, method, 2).relevance
        np.testing.assert_array_equal(sr.explain(model, clip, method, 2).relevance, expected)


def test_a_network_made_under_inference_mode(clip):
    model = inferred()
    with torch.inference_mode():
        loaded = sr.load_model(inferred, "own")
        demo = sr.load_model("demo")
    for copied in (model, sr.load_model(model), loaded):
        found, expected = (sr.explain(one, clip, "dtd", 2).relevance for one in (copied, made()))
        np.testing.assert_array_equal(found, expected)
    assert not any(value.is_inference() for value in demo.state_dict().values())


class Checkpointed(Plain):
    def trunk(self, clip):
        return checkpoint(super().trunk, clip, use_reentrant=False)


def test_a_checkpoint_runs_modules_again_and_is_no_fault(clip):
    model = made(Checkpointed)
    found, expected = (sr.build_method("dtd", one, record="conv2") for one in (model, made()))
    assert torch.equal(*(one(clip, sr.one_hot(2, 5))[1] for one in (found, expected)))
    assert torch.equal(found.recorded["conv2"], expected.recorded["conv2"])
    report = lint(model, "dtd", clip)
    assert report.passed, report.findings


class Decides(Plain):
    """Looks without a gradient, and only decides by what it sees."""

    def trunk(self, clip):
        with torch.no_grad():
            low = self.relu1(self.conv1(clip))
            self.last = low.mean()
            often = (low > 0).sum()
        return super().trunk(clip if often >= 0 else -clip)


def test_what_a_network_only_decides_by_needs_no_gradient(clip):
    np.testing.assert_array_equal(
        sr.explain(made(Decides), clip, "gradient", 2).relevance, sr.explain(made(), clip, "gradient", 2).relevance
    )


def test_what_is_no_network():
    program = torch.export.export(made(), (SPEC.clip(FRAMES[:4]),))
    for given, said in ((program, r"it is a program of torch\.export"), (print, "got builtin_function_or_method")):
        with pytest.raises(sr.InputError, match=said):
            sr.explain(given, SPEC.clip(FRAMES[:4]))
    with pytest.raises(sr.InputError, match=r"it is a program of torch\.export"):
        sr.load_model(program)
    with pytest.raises(sr.InputError, match=r"a network must be a torch\.nn\.Module, got list"):
        sr.load_model([made()])


def test_classes_by_name_one_for_each_clip(clip):
    clips = torch.cat([clip, clip.flip(2)])
    model = made()
    found = sr.explain(model, clips, "gradient", ["d", "a"])
    assert found.target.tolist() == [3, 0]
    np.testing.assert_array_equal(found.relevance, sr.explain(model, clips, "gradient", [3, 0]).relevance)
    assert sr.explain(model, clips, "gradient", ["top1", 1]).target.tolist() == [int(found.logits[0].argmax()), 1]
    assert sr.explain(model, clips, "gradient", ["e"]).target.tolist() == [4, 4]
    with pytest.raises(sr.InputError, match=r"no class named 'f'.*give top1, a name"):
        sr.explain(model, clips, "gradient", ["a", "f"])
    with pytest.raises(sr.InputError, match="3 targets for 2 clips"):
        sr.explain(model, clips, "gradient", ["a", "b", "c"])
