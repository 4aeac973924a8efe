"""Compiled explanations against Zennit's own, on clips with flat regions and exact ties."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from zennit.attribution import Gradient as ZennitGradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import EpsilonPlus

import selrel_zennit as sr
from helpers import assert_mask_close, slow_but
from networks import small_c3d, snapshot
from selrel_deploy.compiler import compile_explanation
from selrel_deploy.compiler.capture.trace import trace
from selrel_deploy.compiler.rewriting import count_convolutions, module_of
from selrel_kernels.reference import motion_gradient, sigma_threshold
from selrel_zennit.attribution import as_attributor

from ..conftest import clip_with_ties, norm_relative, varied

COMPILABLE = [name for name, entry in sr.METHODS.items() if entry.compilable]
SELECTION = sr.MotionSelection(n_sigma=2.0)


def agree(graph, attributor, clip, tolerance):
    """Compare a graph with its attributor for the top class, the runner-up and the last class."""
    classes = graph.num_classes
    with torch.no_grad():
        order = attributor.model(clip)[0].argsort(descending=True)
    for asked, explained in ((-1, int(order[0])), (int(order[1]), int(order[1])), (classes - 1, classes - 1)):
        logits, target, relevance, motion, mask = graph(clip, torch.tensor([asked]))
        expected_logits, attribution = attributor(clip, sr.one_hot(explained, classes).to(clip.dtype))
        expected = attribution.detach().sum(1)
        assert target.tolist() == [explained]
        assert norm_relative(logits, expected_logits.detach()) <= tolerance
        assert norm_relative(relevance, expected) <= tolerance
        gradient = motion_gradient(expected)
        threshold = sigma_threshold(gradient, SELECTION.n_sigma)
        assert_mask_close(mask, SELECTION.mask(expected), gradient.abs() - threshold, band=1e-3 * threshold.numpy())
        assert torch.equal(motion, torch.where(mask, relevance, 0))


@pytest.mark.parametrize("name", slow_but(COMPILABLE, "dtd", "guided_gradcam"))
def test_every_method_on_every_kind_of_layer(name):
    for dtype, tolerance, seeds in ((torch.float64, 1e-9, (0, 1, 2)), (torch.float32, 1e-5, (3,))):
        model = varied(dtype)
        attributor = sr.build_method(name, model)
        graph = compile_explanation(attributor, torch.zeros(1, *model.spec.shape, dtype=dtype), SELECTION)
        for seed in seeds:
            agree(graph, attributor, clip_with_ties(model.spec, seed).to(dtype), tolerance)


def test_dtd_of_c3d_in_27_convolutions():
    model = small_c3d()
    attributor = sr.build_method("dtd", model)
    clip = clip_with_ties(model.spec, 9)
    graph = compile_explanation(attributor, clip, SELECTION)
    # A forward pass to choose the class, and the 50 convolutions of Zennit's own computation.
    assert graph.passes[0].convolutions == 8 + 50
    assert graph.passes[-1].convolutions == count_convolutions(graph.module) <= 27
    for seed in range(3):
        agree(graph, attributor, clip_with_ties(model.spec, seed), 1e-5)
    # What an operator reads: one line per pass, and the graph itself.
    assert "58 convolutions" in str(graph.passes[0])
    assert "torch.ops.aten.convolution.default" in graph.module.code


def test_clips_of_a_batch_do_not_see_each_other():
    model = varied()
    attributor = sr.build_method("dtd", model)
    clips = torch.cat([clip_with_ties(model.spec, seed) for seed in (0, 1)]).double()
    graph = compile_explanation(attributor, clips, SELECTION)
    logits, target, relevance, motion, mask = graph(clips, torch.tensor([-1, 3]))
    for index, explained in ((0, int(logits[0].argmax())), (1, 3)):
        expected_logits, attribution = attributor(clips[index : index + 1], sr.one_hot(explained, 5).double())
        assert int(target[index]) == explained
        assert norm_relative(logits[index], expected_logits[0]) <= 1e-9
        assert norm_relative(relevance[index], attribution[0].sum(0)) <= 1e-9
        assert torch.equal(mask[index], SELECTION.mask(attribution.sum(1))[0])
    assert torch.equal(motion, torch.where(mask, relevance, 0))


def test_a_bare_attributor_with_canonizers():
    model = nn.Sequential(
        nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(128, 5)
    )  # fmt: skip
    model[1].running_mean.uniform_(-3, 3)
    model[1].running_var.uniform_(0.5, 4)
    model = model.double().eval()
    clip = clip_with_ties(sr.ClipSpec(frames=6, short_side=8, crop=8), 0)[:, :, :4].double()
    before = snapshot(model, clip)
    attributor = ZennitGradient(model, EpsilonPlus(canonizers=[SequentialMergeBatchNorm()]))
    # Its hooks are on the network inside, and would count twice.
    with attributor, pytest.raises(sr.InputError, match="EpsilonPlus is registered on a network: leave its with block"):
        compile_explanation(attributor, clip, SELECTION)
    graph = compile_explanation(attributor, clip, SELECTION)
    after = snapshot(model, clip)
    # Zennit puts merged parameters back by value; identity is kept by what compiling does.
    assert after[0] == before[0]
    assert after[4:] == before[4:]
    # As Zennit merges, its logits differ from the network's by 5e-6.
    assert torch.allclose(graph(clip, torch.tensor([-1]))[0], model(clip), rtol=1e-12)
    with as_attributor(attributor, model, clip=clip) as ours:
        agree(graph, ours, clip, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dtd", "gradcam", "lrp_alpha2_beta1"])
def test_model_and_graph_go_their_own_ways(name):
    model = varied()
    clip = clip_with_ties(model.spec, 0).double()
    attributor = sr.build_method(name, model)
    before = snapshot(model, clip)
    graph = compile_explanation(attributor, clip)
    assert snapshot(model, clip) == before
    expected = graph(clip, torch.tensor([1]))
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            value.mul_(0)
    assert all(torch.equal(a, b) for a, b in zip(graph(clip, torch.tensor([1])), expected, strict=True))
    assert graph.info["method"] == name
    assert not any(isinstance(value, nn.Parameter) for value in graph.module.state_dict(keep_vars=True).values())


@pytest.mark.slow
def test_selection_is_the_attributors_own_or_the_callers():
    model = varied()
    clip = clip_with_ties(model.spec, 0).double()
    attributor = sr.build_method("gradient", model)
    paper = sr.MotionSelection.preset("author-2020", n_sigma=1.0)
    graph = compile_explanation(sr.Selective(attributor, paper), clip)
    assert graph.selection == paper
    _, _, _, motion, mask = graph(clip, torch.tensor([2]))
    expected, expected_mask = paper(attributor(clip, sr.one_hot(2, 5).double())[1].sum(1))
    assert torch.equal(mask, expected_mask)
    assert norm_relative(motion, expected) <= 1e-9
    assert 0 < mask.sum() < mask.numel()
    with pytest.raises(sr.InputError, match="selects already"):
        compile_explanation(sr.Selective(attributor), clip, paper)
    assert compile_explanation(attributor, clip).selection == sr.MotionSelection()


class Layer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, value):
        return self.function(value)


def one_layer(function):
    return nn.Sequential(Layer(function), nn.Flatten(), nn.Linear(3 * 2 * 2 * 2, 4)).eval()


def test_what_cannot_be_compiled_is_named():
    clip = torch.randn(1, 3, 2, 2, 2)
    model = nn.Sequential()
    model.add_module("blocks", one_layer(lambda value: value.cumsum(2)))
    with pytest.raises(sr.InputError, match=r"aten\.cumsum\.default .*blocks\.0\)"):
        compile_explanation(ZennitGradient(model.eval()), clip)
    with pytest.raises(sr.InputError, match=r"looks at values .*: write the forward without such decisions"):
        compile_explanation(ZennitGradient(one_layer(lambda value: value * 2 if value.sum() > 0 else value)), clip)
    with pytest.raises(sr.InputError, match="training mode"):
        compile_explanation(ZennitGradient(one_layer(torch.relu).train()), clip)
    with pytest.raises(sr.InputError, match="precision"):
        compile_explanation(ZennitGradient(one_layer(torch.relu)), clip, precision="fp7")
    with pytest.raises(sr.InputError, match=r"must be \[B,3,T,H,W\]"):
        compile_explanation(ZennitGradient(one_layer(torch.relu)), clip[0])
    # The model is as it was after every one of these.
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Optional(nn.Module):
    """A residual network whose sums torch.fx sees, or does not, by what its forward does beside them."""

    spec = sr.ClipSpec(frames=4, short_side=8, crop=8)

    def __init__(self, loops):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv3d(3, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.end = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 5))
        self.loops = loops

    def forward(self, clip, flag=False):
        low = self.relu1(self.conv1(clip))
        if flag:
            return self.end(low)
        if self.loops:
            low = torch.stack([low[:, :, step] for step in range(low.shape[2])], 2)
        return self.end(self.relu2(self.conv2(low) + low))


@pytest.mark.parametrize("loops", [False, True])
def test_a_sum_that_no_rule_sees_gets_no_certificate(loops):
    """A graph can be made of both, and would agree with the attributor: of a map of twice the relevance too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Optional(loops).double().eval()
    clip = clip_with_ties(sr.ClipSpec(frames=6, short_side=8, crop=8), 0)[:, :, :4].double()
    attributor = sr.build_method("dtd", model)
    zennits = ZennitGradient(model, sr.build_method("dtd", model).composite)
    if loops:
        for one in (attributor, zennits):
            with pytest.raises(sr.InputError, match="no rule sees: Optional: add of two tensors"):
                compile_explanation(one, clip, SELECTION)
            assert not any("forward" in vars(module) for module in model.modules())
    else:
        graph = compile_explanation(attributor, clip, SELECTION)
        agree(graph, attributor, clip, 1e-9)
        assert float(graph(clip, torch.tensor([1]))[2].sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("raises", [False, True])
def test_recurrent_modules_run_in_steps_and_the_backends_are_as_they_were(raises, monkeypatch):
    """With flags that torch lets no one assign any more, as its own test suite has them."""

    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.fc = nn.LSTM(12, 4, batch_first=True), nn.Linear(4, 5)

        def forward(self, clip):
            states, _ = self.lstm(clip.transpose(1, 2).flatten(2))
            return self.fc(states[:, -1])

    def flags():
        return torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled

    model = Frames().eval()
    monkeypatch.setattr(torch.backends, "__allow_nonbracketed_mutation_flag", False)
    before = flags()
    seen = []

    def look(module, args):
        seen.append(flags())
        if raises:
            raise ValueError("planted")

    model.lstm.register_forward_pre_hook(look)
    model.fc.register_forward_pre_hook(lambda *_: seen.append(flags()))
    clip = torch.randn(1, 3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="planted") if raises else nullcontext():
        graph = trace(ZennitGradient(model), clip, SELECTION)
        # As often as there are frames, for the candidate and for what is shown, in both passes.
        names = [str(node.target) for node in graph.graph.nodes]
        assert names.count("aten.tanh.default") + names.count("aten.tanh_.default") == 2 * 2 * 3
    # What raises is run again with its axes turned, to say what it takes.
    assert (set(seen) == {(False, False)}) if raises else (seen == [(False, False), before] * 2)
    assert flags() == before


def test_a_graph_refuses_what_it_was_not_made_for():
    graph = compile_explanation(ZennitGradient(one_layer(torch.relu)), torch.randn(1, 3, 2, 2, 2))
    clip = torch.randn(1, 3, 2, 2, 2)
    for wrong in (clip.double(), clip[:, :, :1], clip.expand(2, 3, 2, 2, 2)):
        with pytest.raises(sr.InputError, match="the clip must be"):
            graph(wrong, torch.tensor([0]))
    for wrong in (torch.tensor([4]), torch.tensor([-2]), torch.tensor([0.0]), torch.tensor(0)):
        with pytest.raises(sr.InputError, match="target must"):
            graph(clip, wrong)
    assert graph.info["method"] is None
    assert graph.info["attributor"] == "zennit.attribution.Gradient"


def test_every_node_knows_its_module():
    model = small_c3d(width=1, hidden=4)
    graph = trace(sr.build_method("gradient", model), torch.zeros(1, *model.spec.shape), SELECTION)
    convolutions = [node for node in graph.graph.nodes if str(node.target) == "aten.convolution.default"]
    assert [module_of(node) for node in convolutions[:3]] == ["conv1", "conv2", "conv3a"]
    pools = [node for node in graph.graph.nodes if str(node.target) == "aten.max_pool3d_with_indices_backward.default"]
    assert {module_of(node) for node in pools} <= {name for name, _ in model.named_modules()}


@pytest.mark.slow
def test_calibrated_thresholds_become_part_of_the_graph():
    model = sr.load_model("demo")
    attributor = sr.build_method("dtd", model)
    selection = sr.Calibration.shipped(attributor).selection(alpha=0.01)
    clip = torch.cat([clip_with_ties(model.spec, seed) for seed in (1, 2)])
    graph = compile_explanation(attributor, clip, selection)
    with attributor:
        _, relevance = attributor(clip, torch.eye(8)[[3, 3]])
    kept, mask = selection(relevance)
    _, _, _, motion_relevance, compiled = graph(clip, torch.tensor([3, 3]))
    assert mask.any()
    assert not mask.all()
    assert (compiled != mask).float().mean() < 1e-4
    agreed = compiled == mask
    torch.testing.assert_close(
        motion_relevance[agreed], kept.sum(1)[agreed], rtol=1e-4, atol=1e-5 * float(kept.abs().max())
    )

    another = sr.build_method("lrp_epsilon_plus", model)
    with pytest.raises(sr.InputError, match="another method"):
        compile_explanation(another, clip, selection)
