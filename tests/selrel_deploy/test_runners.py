"""Runners: the same explanation from every runtime, and no input that is guessed at."""

import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch

import selrel_zennit as sr
from selrel_deploy import compile_explanation, export, open_runner
from selrel_deploy.artifact import OUTPUTS
from selrel_deploy.runners import RUNNERS

from .conftest import clip_with_ties, norm_relative, varied

SPEC = varied().spec
# Layers of every kind; of the methods those whose graphs differ most.
METHODS = ["dtd", "gradcam", "guided_gradcam", "lrp_alpha2_beta1"]


@pytest.fixture(scope="module", params=METHODS)
def exported(request, tmp_path_factory):
    attributor = sr.build_method(request.param, varied(torch.float32))
    graph = compile_explanation(attributor, torch.zeros(1, *SPEC.shape))
    return graph, export(graph, tmp_path_factory.mktemp("artifact") / "method.onnx"), attributor


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    graph = compile_explanation(sr.build_method("gradient", varied(torch.float32)), torch.zeros(1, *SPEC.shape))
    return graph, export(graph, tmp_path_factory.mktemp("artifact") / "gradient.onnx")


def test_onnxruntime_computes_the_explanation(exported):
    graph, path, attributor = exported
    with open_runner(path, "onnxruntime", threads=1) as run, open_runner(graph, "eager") as eager:
        for seed in range(3):
            clip = clip_with_ties(SPEC, seed)
            for target in (None, 1, 4):
                explanation, reference = run(clip.numpy(), target), eager(clip.numpy(), target)
                assert np.array_equal(explanation.target, reference.target)
                assert np.allclose(explanation.logits, reference.logits, rtol=1e-4, atol=1e-4)
                expected = attributor(clip, sr.one_hot(int(reference.target[0]), 5))[1].sum(1)
                assert norm_relative(torch.from_numpy(reference.relevance), expected) <= 1e-5
                # Rounding may move the winner of a pooling window; see the parity certificate.
                assert norm_relative(torch.from_numpy(explanation.relevance), expected) <= 1e-3
                assert (explanation.mask != reference.mask).mean() <= 2e-3


def test_golden_cases_run(exported):
    _, path, _ = exported
    with open_runner(path) as run:
        golden = run.artifact.golden()
        for index, clip in enumerate(golden["clip"]):
            explanation = run(clip, golden["target"][index])
            assert np.array_equal(explanation.target, golden["explained_target"][index])
            error = np.linalg.norm(explanation.relevance - golden["relevance"][index])
            assert error <= 1e-3 * np.linalg.norm(golden["relevance"][index])


def test_a_runner_says_what_runs(small):
    graph, path = small
    with open_runner(path) as run:
        assert (run.name, run.provider, run.precision) == ("onnxruntime", "CPUExecutionProvider", "fp32")
        assert run.device
        assert "CPUExecutionProvider" in repr(run)
    with open_runner(graph, "eager") as run:
        assert (run.name, run.provider, run.precision) == ("eager", "torch", "fp32")


@pytest.mark.parametrize("name", ["eager", "onnxruntime"])
def test_bad_input_is_refused(small, name):
    clip = clip_with_ties(SPEC, 0).numpy()
    with open_runner(small[name == "onnxruntime"], name) as run:
        for target in (-2, 5, [0, 1], 1.0, "archery", True, [[0]]):
            with pytest.raises(sr.InputError, match="target must"):
                run(clip, target)
        damaged = clip.copy()
        damaged[0, 0, 0, 0, 0] = np.nan
        for wrong, message in (
            (clip.astype(np.float64), "float32 array"),
            (clip[:, :, 1:], "float32 array"),
            (torch.from_numpy(clip), "float32 array"),
            (damaged, "NaN"),
        ):
            with pytest.raises(sr.InputError, match=message):
                run(wrong)
        # A view in another order is the same clip.
        view = np.asfortranarray(clip)
        assert np.array_equal(run(view, np.int32(2)).relevance, run(clip, [2]).relevance)
    with pytest.raises(sr.InputError, match="closed"):
        run(clip)


def test_what_cannot_be_opened(small, monkeypatch, tmp_path):
    graph, path = small
    for source, name, options, message in (
        (path, "onnxruntme", {}, "did you mean 'onnxruntime'"),
        (path, "eager", {}, "compile_explanation"),
        (graph, "onnxruntime", {}, "export the graph"),
        (path, "onnxruntime", {"treads": 1}, "no option 'treads'"),
        (graph, "eager", {"threads": 1}, "no option 'threads'"),
        (path, "onnxruntime", {"provider": "CUDAExecutionProvider"}, "has no CUDAExecutionProvider"),
        (tmp_path / "missing.onnx", "onnxruntime", {}, "does not exist"),
    ):
        with pytest.raises(sr.InputError, match=message):
            open_runner(source, name, **options)
    # A provider that is listed and does not load: ONNX Runtime itself only warns.
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with pytest.raises(sr.InputError, match="CUDAExecutionProvider"):
        open_runner(path, "onnxruntime", provider="CUDAExecutionProvider")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(sr.InputError, match="pip install onnxruntime"):
        open_runner(path, "onnxruntime")
    assert set(RUNNERS) >= {"eager", "onnxruntime"}


def test_an_artifact_runs_without_torch(small):
    source = f"""
import sys
for name in ("torch", "torchvision", "zennit"):
    sys.modules[name] = None
import numpy as np
from selrel_deploy import open_runner, read_artifact
golden = read_artifact({str(small[1])!r}).golden()
with open_runner({str(small[1])!r}, "onnxruntime", threads=1) as run:
    explanation = run(golden["clip"][0], golden["target"][0])
print(float(np.abs(explanation.relevance - golden["relevance"][0]).max() / np.abs(golden["relevance"][0]).max()))
try:
    open_runner({str(small[1])!r}, "eager")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    error, message = done.stdout.splitlines()
    assert float(error) < 1e-3
    assert message == "the runner eager needs torch, which is not installed: pip install torch"
    assert len(OUTPUTS) == 5


def test_openvino_runs_in_float32_or_not_at_all(exported):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    _, path, _ = exported
    with open_runner(path, "openvino", threads=2) as run:
        assert (run.name, run.provider, run.precision) == ("openvino", "CPU", "fp32")
        golden = run.artifact.golden()
        for index, clip in enumerate(golden["clip"]):
            explanation = run(clip, golden["target"][index])
            assert np.array_equal(explanation.target, golden["explained_target"][index])
            error = np.linalg.norm(explanation.relevance - golden["relevance"][index])
            assert error <= 1e-2 * np.linalg.norm(golden["relevance"][index])
    with pytest.raises(sr.InputError, match="no device NPX"):
        open_runner(path, "openvino", device="NPX")
    with pytest.raises(sr.InputError, match="no option 'provider'"):
        open_runner(path, "openvino", provider="CPU")


def test_openvino_is_checked_against_a_golden_case(small, monkeypatch):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    from selrel_deploy.runners.openvino import OpenVinoRunner

    honest = OpenVinoRunner.run
    monkeypatch.setattr(OpenVinoRunner, "run", lambda self, *inputs: [value * 2 for value in honest(self, *inputs)])
    with pytest.raises(sr.InputError, match=r"differs by 100%"):
        open_runner(small[1], "openvino", threads=2)


def test_a_missing_extra_is_named(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(sr.InputError, match=r"pip install 'selrel-zennit\[openvino\]'"):
        open_runner(small[1], "openvino")
