"""The convolutional networks of the pack, compiled, exported, run, certified and built: the same explanation."""

import importlib
import sys

import numpy as np
import pytest
import torch

import selrel_zennit as sr
from helpers import slow_but
from repo.tree import ROOT
from selrel_deploy import compile_explanation, open_runner, read_artifact
from selrel_deploy.artifact import export
from selrel_deploy.parity.certify import certify
from selrel_deploy.parity.clips import synthetic_clips
from selrel_deploy.parity.measures import cosine
from selrel_deploy.parity.zennit_reference import zennit_reference
from selrel_deploy.runners.tensorrt import engine_lint

from .small_networks import CLASSES, small_network

# Each network the whole way to a device by one method, and by another, where it adds something, through the compiler
# alone; benchmarks/networks.py has all networks and methods at full size, and builds the LSTM network too, whose whole
# ResNet-50 would take half a minute here. Made small, the ResNets of 34 layers are those of 18.
EXPORTED = {
    "r3d_18": "dtd",
    "mc3_18": "gradcam",
    "r2plus1d_18": "gradcam",
    "s3d": "gradcam",
    "i3d": "gradcam",
    "resnet3d_18": "gradcam",
    "resnet3d_18a": "guided_gradcam",
    "resnet3d_50": "gradcam",
    "x3d_s": "dtd",
    "tsm_resnet50": "gradcam",
    "resnet50_lstm": "guided_backprop",
}
COMPILED = {
    "r2plus1d_18": "guided_backprop",
    "i3d": "dtd",
    "resnet3d_18": "dtd_epsilon_head",
    "resnet3d_18a": "lrp_epsilon_plus",
    "resnet3d_50": "guided_gradcam",
    "resnet50_lstm": "gradcam",
}
NOT_BUILT = ("resnet50_lstm",)


@pytest.fixture
def hand_placed(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("hand_placed")
    for name in ("hand_placed", "hand_placed_frames"):
        sys.modules.pop(name, None)


# The others are made of the same blocks.
BY_HAND = (
    "r3d_18",
    "r2plus1d_18",
    "s3d",
    "i3d",
    "resnet3d_18a",
    "resnet3d_50",
    "x3d_s",
    "tsm_resnet50",
    "resnet50_lstm",
)


@pytest.mark.parametrize("name", slow_but(BY_HAND, "r3d_18"))
def test_equal_to_rules_placed_by_hand(name, hand_placed):
    """Of networks with merged batch norms and sums as modules, written for it; no canonizer takes part."""
    model = small_network(name).double()
    bounds = [torch.from_numpy(bound).double() for bound in model.spec.bounds()]
    noise = torch.rand(1, *model.spec.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    clip = bounds[0] + (bounds[1] - bounds[0]) * noise
    placed, layer = hand_placed.reference(name, model)
    logits = placed.eval()(clip)
    torch.testing.assert_close(logits, model(clip), rtol=1e-9, atol=1e-9)
    target = sr.one_hot(logits.argmax(1), CLASSES).double()
    for method in (*hand_placed.RULES, "guided_backprop", "gradcam", "guided_gradcam"):
        with sr.build_method(method, model) as attributor:
            _, relevance = attributor(clip, target)
        expected = hand_placed.explain(method, placed, layer, clip, target, bounds)
        assert expected.any(), method
        assert (relevance - expected).norm() <= 1e-9 * expected.norm(), method


@pytest.mark.parametrize("name", slow_but(COMPILED, "resnet3d_18"))
def test_compiled(name):
    model = small_network(name)
    attributor = sr.build_method(COMPILED[name], model)
    clip = torch.rand(1, *model.spec.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    graph = compile_explanation(attributor, clip)
    _, target, relevance, *_ = graph(clip, torch.tensor([-1]))
    with attributor:
        _, expected = attributor(clip, sr.one_hot(target, CLASSES))
    assert expected.any()
    assert cosine(relevance.numpy().ravel(), expected.sum(1).numpy().ravel()) >= 0.99999


@pytest.mark.parametrize("name", slow_but(EXPORTED, "mc3_18"))
def test_the_whole_way(name, tmp_path):
    model = small_network(name)
    attributor = sr.build_method(EXPORTED[name], model)
    graph = compile_explanation(attributor, torch.zeros(1, *model.spec.shape))
    low, high = (torch.from_numpy(bound) for bound in model.spec.bounds())
    path = export(graph, tmp_path / "a.onnx", clips=low + (high - low) * torch.rand(1, *model.spec.shape))
    artifact = read_artifact(path)
    clips, _ = synthetic_clips(artifact, model.spec)
    with open_runner(path, "onnxruntime", threads=1) as run, attributor:
        certificate = certify(run, zennit_reference(attributor, artifact), np.asarray(clips), artifact.selection)
    assert certificate.grade == "exact", certificate.reasons
    assert min(row.cosine for row in certificate.comparisons if row.output == "relevance") >= 0.99999
    if name in NOT_BUILT:
        return
    if not engine_lint.installed():
        pytest.skip("all but the build passed: TensorRT-RTX (extra trt-lint) is not installed")
    report = engine_lint.build(path)
    assert report.refusals == []
    assert report.plan_bytes["explanation"] > 0
