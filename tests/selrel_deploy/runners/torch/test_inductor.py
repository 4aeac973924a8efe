"""The inductor runner: it computes what the graph says, in the precision that it names, or does not open."""

import pytest
import torch
from torch import nn
from zennit.attribution import Gradient as ZennitGradient

import selrel_zennit as sr
from selrel_deploy import open_runner
from selrel_deploy.compiler import compile_explanation
from selrel_deploy.compiler.rewriting import aten
from selrel_deploy.runners.memory import keep_freed_memory
from selrel_zennit.composites import DTD

from ...conftest import clip_with_ties, norm_relative

SPEC = sr.ClipSpec(frames=6, short_side=8, crop=8)


def graph_of(precision, stride=1):
    torch.manual_seed(0)
    layers = [nn.Conv3d(3, 20, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2)]
    layers += [nn.Conv3d(20, 24, 3, padding=1, stride=stride), nn.ReLU(), nn.Conv3d(24, 24, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(24, 5)).eval()
    low, high = (torch.from_numpy(bound) for bound in SPEC.bounds())
    attributor = ZennitGradient(model.requires_grad_(False), DTD(low, high))
    return compile_explanation(attributor, torch.zeros(1, *SPEC.shape), sr.MotionSelection(n_sigma=2.0), precision)


@pytest.mark.slow
def test_the_same_explanation_in_int8_and_bf16():
    graph = graph_of("bf16+int8")
    with open_runner(graph, "inductor") as run:
        assert repr(run).startswith("InductorRunner(torch inductor on ")
        assert run.precision == "bf16+int8"
        for seed, target in ((0, None), (1, 3), (2, 4)):
            clip = clip_with_ties(SPEC, seed)
            got = run(clip.numpy(), target)
            logits, explained, relevance, *_ = graph(clip, torch.tensor([-1 if target is None else target]))
            assert got.target.tolist() == explained.tolist()
            assert norm_relative(torch.from_numpy(got.logits), logits) <= 1e-2
            assert norm_relative(torch.from_numpy(got.relevance), relevance) <= 0.05
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run(clip.numpy())
    # What it names is what ran: the integer kernels of oneDNN, for both directions of the two inner layers.
    assert sum(event.count for event in profile.key_averages() if event.key == "onednn::qconv_pointwise") == 4
    with pytest.raises(sr.InputError, match="closed"):
        run(clip.numpy())


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.mark.slow
def test_constants_are_frozen_and_transposed_convolutions_right(threads):
    graph = graph_of("fp32", stride=2)
    assert [node for node in graph.module.graph.find_nodes(op="call_function", target=aten.convolution.default)
            if node.args[6]]  # fmt: skip
    run = open_runner(graph, "inductor")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for seed in range(2):
            torch.set_num_threads(threads + seed)
            clip = clip_with_ties(SPEC, seed)
            got = torch.from_numpy(run(clip.numpy(), 2).relevance)
            assert norm_relative(got, graph(clip, torch.tensor([2]))[2]) <= 1e-5
    kernels = {event.key for event in profile.key_averages()}
    # Weights are packed, and nothing is compiled a second time.
    assert "mkldnn::_convolution_pointwise" in kernels
    assert not [kernel for kernel in kernels if "compile_id" in kernel]


def test_a_wrong_explanation_does_not_open(monkeypatch):
    graph = graph_of("fp32")

    def miscompiled(module, **options):
        def run(clip, target):
            logits, explained, relevance, *rest = module(clip, target)
            return logits, explained, relevance.flip(2), *rest

        return run

    monkeypatch.setattr(torch, "compile", miscompiled)
    with pytest.raises(sr.InputError, match=r"inductor computes another explanation .* use the eager runner"):
        open_runner(graph, "inductor")


def test_bad_input():
    graph = graph_of("fp32")
    with pytest.raises(sr.InputError, match="no option 'threads'"):
        open_runner(graph, "inductor", threads=2)
    with pytest.raises(sr.InputError, match="takes what compile_explanation returns"):
        open_runner("some.onnx", "inductor")


def test_memory_is_kept_where_the_c_library_can():
    import platform

    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
