"""Runners: the same explanation from every runtime, and no input that is guessed at."""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch

import selrel_zennit as sr
from helpers import slow_but
from networks import small_c3d
from selrel_deploy import compile_explanation, open_runner
from selrel_deploy.artifact import export
from selrel_deploy.artifact.format import OUTPUTS, write_manifest
from selrel_deploy.runners import RUNNERS, OutputError
from selrel_deploy.runners.onnxruntime import OnnxRuntimeRunner

from ..conftest import FRAME_SIZE, clip_with_ties, norm_relative, varied

SPEC = varied().spec
# Layers of every kind; of the methods those whose graphs differ most.
METHODS = ["dtd", "gradcam", "guided_gradcam", "lrp_alpha2_beta1"]


@pytest.fixture(scope="module", params=slow_but(METHODS, "dtd"))
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_the_parts_of_a_split_artifact(artifacts, name):
    if name == "openvino":
        pytest.importorskip("openvino", reason="needs the extra openvino")
    clips = [clip_with_ties(small_c3d().spec, seed).numpy() for seed in (0, 1)]
    with open_runner(artifacts["whole"], name) as whole, open_runner(artifacts["split"], name) as split:
        assert (whole.split, split.split) == (False, True)
        with pytest.raises(sr.InputError, match="--split"):
            whole.forward(clips[0])
        with pytest.raises(sr.InputError, match="--split"):
            whole.explain()
        with pytest.raises(sr.InputError, match=r"call forward\(clip\) first"):
            split.explain()
        for clip in clips:
            logits = split.forward(clip)
            # Each explanation is of the clip given last, whatever was asked before.
            for target in (None, 3, 0, None):
                explanation, expected = split.explain(target), whole(clip, target)
                assert np.array_equal(explanation.logits, logits)
                assert np.array_equal(explanation.target, expected.target)
                assert np.allclose(explanation.logits, expected.logits, rtol=1e-5, atol=1e-5)
                error = np.linalg.norm(explanation.relevance - expected.relevance)
                assert error <= 1e-4 * np.linalg.norm(expected.relevance)
            assert np.array_equal(split(clip, 2).relevance, split.explain(2).relevance)
        first, second = (split(clip, 1) for clip in clips)
        assert not np.array_equal(first.relevance, second.relevance)
        split.forward(clips[0])
        # What was returned before stays as it was.
        assert np.array_equal(split.explain(1).relevance, first.relevance)
        with pytest.raises(sr.InputError, match="target must"):
            split.explain(5)
        damaged = clips[0].copy()
        damaged[0, 0, 0, 0, 0] = np.inf
        with pytest.raises(sr.InputError, match="NaN or infinity"):
            split.forward(damaged)
        # After a clip that was refused there is none to explain.
        with pytest.raises(sr.InputError, match=r"call forward\(clip\) first"):
            split.explain(1)
    with pytest.raises(sr.InputError, match="closed"):
        split.forward(clips[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_frames_go_in_as_they_are(artifacts, name):
    if name == "openvino":
        pytest.importorskip("openvino", reason="needs the extra openvino")
    spec = small_c3d().spec
    frames = np.random.default_rng(3).integers(0, 256, (1, 16, *FRAME_SIZE, 3), dtype=np.uint8)
    frames[:, 1:] = frames[:, :1] // 2
    with open_runner(artifacts["uint8"], name) as run, open_runner(artifacts["whole"], name) as whole:
        assert run.frames_shape == frames.shape
        found, expected = run(frames, 1), whole(spec.array(frames[0]), 1)
        assert np.linalg.norm(found.relevance - expected.relevance) <= 1e-2 * np.linalg.norm(expected.relevance)
        for wrong in (frames.astype(np.float32), frames[:, 1:], frames[:, :, 1:], spec.array(frames[0])):
            with pytest.raises(sr.InputError, match=r"frames must be a uint8 array \(1, 16, 40, 50, 3\)"):
                run(wrong)


def test_what_is_no_explanation_is_an_error(small, monkeypatch):
    honest = OnnxRuntimeRunner.run

    def overflows(self, clip, target):
        outputs = list(honest(self, clip, target))
        outputs[2] = np.full_like(outputs[2], np.inf)
        return outputs

    monkeypatch.setattr(OnnxRuntimeRunner, "run", overflows)
    with open_runner(small[1]) as run, pytest.raises(OutputError, match="NaN or infinity; choose another precision"):
        run(clip_with_ties(SPEC, 0).numpy())


def test_a_precision_that_a_runner_lacks_is_refused(small, monkeypatch, tmp_path):
    """An artifact of a precision that the runtime would quietly compute in another."""
    for file in small[1].parent.iterdir():
        shutil.copy(file, tmp_path)
    manifest = tmp_path / "gradient.json"
    fields = json.loads(manifest.read_text(encoding="utf-8"))
    del fields["manifest_sha256"]
    write_manifest({**fields, "precision": "bf16"}, manifest)
    for name in ("onnxruntime", "openvino"):
        if name == "openvino" and importlib.util.find_spec("openvino") is None:
            continue
        with pytest.raises(sr.InputError, match=f"the {name} runner does not run bf16"):
            open_runner(tmp_path / "gradient.onnx", name)


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


@pytest.mark.slow
def test_openvino_repeats_voxels_of_clips_at_once(tmp_path):
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    from selrel_deploy.runners.openvino import _read

    def images(model):
        return [
            op for op in model.get_ops() if op.get_type_name() == "Interpolate" and len(op.get_output_shape(0)) == 4
        ]

    model = small_c3d(width=2, hidden=4)
    graph = compile_explanation(sr.build_method("dtd", model), torch.zeros(1, *model.spec.shape))
    path, core = export(graph, tmp_path / "dtd.onnx"), openvino.Core()
    # Three of each of the five max pools: the maxima, the ranks, the relevance.
    assert len(images(core.read_model(path))) == 15
    assert images(_read(core, path)) == []
    with open_runner(path, "openvino", threads=2) as run, open_runner(graph, "eager") as eager:
        clip = clip_with_ties(model.spec, 1).numpy()
        assert norm_relative(*(torch.from_numpy(runner(clip).relevance) for runner in (run, eager))) <= 1e-3

    class Resized(torch.nn.Module):
        def __init__(self, mode):
            super().__init__()
            self.mode = mode

        def forward(self, clip):
            frames = clip.reshape(1, 6, 4, 4)
            wide = torch.nn.functional.interpolate(frames, (8, 8), mode=self.mode)
            return wide.reshape(1, 3, 2, 8, 8) if self.mode == "bilinear" else wide.reshape(1, 2, 3, 8, 8)

    # Neither another interpolation nor other axes after it.
    for mode in ("bilinear", "nearest"):
        other = tmp_path / f"{mode}.onnx"
        torch.onnx.export(Resized(mode).eval(), (torch.zeros(1, 3, 2, 4, 4),), other, dynamo=True, verbose=False)
        assert len(images(_read(core, other))) == 1


@pytest.mark.slow
def test_openvino_multiplies_by_a_weight_that_is_not_square(tmp_path):
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    from selrel_deploy.runners.openvino import _read

    def columns(model):
        return [tuple(op.get_input_shape(1)) for op in model.get_ordered_ops() if "Backprop" in op.get_type_name()]

    model, core = small_c3d(width=2, hidden=4), openvino.Core()
    graph = compile_explanation(sr.build_method("dtd", model), torch.zeros(1, *model.spec.shape))
    path = export(graph, tmp_path / "dtd.onnx")
    before, after = columns(core.read_model(path)), columns(_read(core, path))
    # OpenVINO takes one packing of a square weight for both of its directions.
    assert after == [shape for shape in before if shape[0] == shape[1]]
    assert 0 < len(after) < len(before)


def test_openvino_is_checked_against_a_golden_case(small, monkeypatch):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    from selrel_deploy.runners.openvino import OpenVinoRunner

    honest = OpenVinoRunner.run
    monkeypatch.setattr(OpenVinoRunner, "run", lambda self, *inputs: [value * 2 for value in honest(self, *inputs)])
    with pytest.raises(sr.InputError, match=r"differs by 100%"):
        open_runner(small[1], "openvino", threads=2)


def test_a_missing_extra_is_named(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(sr.InputError, match="pip install openvino"):
        open_runner(small[1], "openvino")
