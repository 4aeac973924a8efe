"""Composites and attributors of Zennit's, compiled and exported: what the graph computes, what the artifact says."""

import json

import numpy as np
import pytest
import torch
from zennit.attribution import Gradient as ZennitGradient
from zennit.attribution import IntegratedGradients, SmoothGrad
from zennit.composites import EpsilonPlus, LayerMapComposite
from zennit.rules import Epsilon, Gamma, Norm, Pass
from zennit.types import Activation, AvgPool, Convolution, Linear

import selrel_zennit as sr
from helpers import slow_but
from residual import residual
from selrel_deploy import compile_explanation, open_runner
from selrel_deploy.artifact import export
from selrel_deploy.artifact.format import read_artifact
from selrel_deploy.parity.zennit_reference import rebuild
from selrel_zennit.cli import main

RULES = [(Activation, Pass()), (AvgPool, Norm()), (Convolution, Gamma(0.5)), (Linear, Epsilon())]
OBJECTS = {
    "composite": lambda model: LayerMapComposite(RULES),
    "attributor": lambda model: ZennitGradient(model, EpsilonPlus()),
    "integrated gradients": lambda model: IntegratedGradients(model, n_iter=2),
    "name": lambda model: "dtd",
}


@pytest.fixture
def clip():
    return torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("kind", slow_but(OBJECTS, "composite", "integrated gradients"))
def test_it_compiles_to_what_explain_gives(kind, clip):
    model = residual()
    method = OBJECTS[kind](model)
    graph = compile_explanation(method, clip, model=model)
    logits, explained, relevance, motion, mask = graph(clip, torch.tensor([2]))
    explanation = sr.explain(model, clip, method, 2)
    largest = np.abs(explanation.relevance).max()
    assert np.abs(relevance.numpy() - explanation.relevance).max() < 1e-6 * largest
    assert np.abs(motion.numpy() - explanation.motion_relevance).max() < 1e-6 * largest
    assert np.array_equal(mask.numpy(), explanation.mask)
    assert torch.allclose(logits, model(clip), rtol=1e-9)
    assert explained.tolist() == [2]


def test_an_artifact_says_which_composite_it_was(clip, tmp_path, capsys):
    model = residual().float()
    clip = clip.float()
    path = export(compile_explanation(LayerMapComposite(RULES), clip, model=model), tmp_path / "own.onnx")
    artifact = read_artifact(path)
    said = artifact.info
    assert said["method"] is None
    assert said["attributor"] == "selrel_zennit.attribution.methods.gradient.Gradient"
    gamma = {"class": "zennit.rules.Gamma", "gamma": 0.5, "stabilizer": 1e-6, "zero_params": None}
    assert said["composite"]["layer_map"][2] == {"types": "zennit.types.Convolution", "rule": gamma}
    assert said["composite"]["added_rules"][0]["types"] == "zennit.layer.Sum"
    found = open_runner(path, "onnxruntime")(clip.numpy(), target=2)
    expected = sr.explain(model, clip, LayerMapComposite(RULES), 2)
    assert np.abs(found.relevance - expected.relevance).max() < 1e-4 * np.abs(expected.relevance).max()
    assert main(["run", str(path), "--out", str(tmp_path / "out"), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "LayerMapComposite"
    with pytest.raises(sr.InputError, match=r"does not say its method.*compare with the golden cases"):
        rebuild(artifact)


def test_a_graph_says_all_options_of_its_method(clip):
    model = residual()
    said = compile_explanation(sr.build_method("lrp_epsilon_plus", model, epsilon=1e-4), clip).info
    assert said["options"] == {"epsilon": 1e-4, "zero_params": None, "gamma": None}
    assert sr.build_method("lrp_epsilon_plus", model, **said["options"]).info["options"] == said["options"]


def test_what_no_graph_can_hold_is_refused(clip):
    model = residual()
    with pytest.raises(sr.InputError, match=r"randn_like.* cannot be put into a static graph"):
        compile_explanation(SmoothGrad(model, n_iter=2), clip)
    with pytest.raises(sr.InputError, match="are for a network: give model="):
        compile_explanation(EpsilonPlus(), clip)
    with pytest.raises(sr.InputError, match="of another network"):
        compile_explanation(ZennitGradient(model), clip, model=residual())
