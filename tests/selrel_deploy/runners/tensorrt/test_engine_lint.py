"""engine_lint: TensorRT-RTX's parser and builder take every artifact, and what they do not take is named."""

import shutil
import signal
import subprocess

import onnx
import pytest
import torch

import selrel_zennit as sr
from helpers import slow_but
from networks import few_layers
from selrel_deploy import compile_explanation
from selrel_deploy.artifact import export
from selrel_deploy.artifact.format import data_path, manifest_path
from selrel_deploy.runners.tensorrt import engine_lint
from selrel_zennit.attribution import METHODS

needs_trt = pytest.mark.skipif(not engine_lint.installed(), reason="needs the extra trt-lint")
COMPILABLE = [name for name, entry in METHODS.items() if entry.compilable]


def artifact(path, method="gradcam", precision="fp32", **arguments):
    model = few_layers()
    example = torch.zeros(1, *model.spec.shape)
    graph = compile_explanation(sr.build_method(method, model), example, precision=precision)
    clip = torch.from_numpy(model.spec.bounds()[1]).expand(1, *model.spec.shape).contiguous()
    return export(graph, path, **{"clips": clip, **arguments})


@needs_trt
@pytest.mark.parametrize("method", slow_but(COMPILABLE, "dtd"))
def test_every_compilable_method_builds(method, tmp_path):
    """On a small network; benchmarks/compiled_methods.py does it on C3D and on the embedded model."""
    report = engine_lint.build(artifact(tmp_path / "a.onnx", method))
    assert report.refusals == []
    assert report.plan_bytes["explanation"] > 0


@needs_trt
@pytest.mark.parametrize("precision", slow_but(["fp32+int8", "fp16+int8"], "fp32+int8"))
def test_lower_precisions_build(precision, tmp_path):
    assert engine_lint.lint(artifact(tmp_path / "a.onnx", "dtd", precision)) == []


@pytest.mark.slow
@needs_trt
def test_both_parts_and_frames_build(tmp_path):
    path = artifact(tmp_path / "a.onnx", split=True, input="uint8", frame_size=(20, 24), clips=None)
    report = engine_lint.build(path)
    assert report.refusals == []
    assert set(report.plan_bytes) == {"forward", "explain"}


@needs_trt
def test_a_planted_operation_is_named_with_its_module(tmp_path):
    path = artifact(tmp_path / "a.onnx", external_data=True)
    file = onnx.load(path, load_external_data=False)
    planted = [node for node in file.graph.node if node.op_type == "Relu"][1:3]
    for node in planted:
        node.op_type, node.domain = "Sparkle", "unheard.of"
    file.opset_import.append(onnx.helper.make_opsetid("unheard.of", 1))
    # No artifact any more: a file alone can be checked too.
    (tmp_path / "alone").mkdir()
    onnx.save(file, tmp_path / "alone" / "a.onnx")
    shutil.copy(data_path(path), tmp_path / "alone")
    refusals = engine_lint.lint(tmp_path / "alone" / "a.onnx")
    assert [(refusal.node, refusal.operation, refusal.module) for refusal in refusals] == [
        (planted[0].name, "Sparkle", "relu2"),
        (planted[1].name, "Sparkle", "relu3"),
    ]
    assert "Plugin not found" in refusals[0].reason
    assert str(refusals[0]).startswith(f"a.onnx: Sparkle {planted[0].name} (module relu2): ")


def test_without_the_extra_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_lint.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(sr.InputError, match=r"pip install 'selrel-zennit\[trt-lint\]'"):
        engine_lint.lint(tmp_path / "a.onnx")


@pytest.mark.parametrize(("code", "text"), [(-signal.SIGSEGV, ""), (0, "no answer"), (1, "boom")])
def test_a_crash_of_the_library_ends_in_one_line(tmp_path, monkeypatch, code, text):
    """A native library that dies takes its own process with it, and no other."""
    (tmp_path / "a.onnx").write_bytes(b"")
    monkeypatch.setattr(engine_lint, "installed", lambda: True)
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, code, stdout=text, stderr=text)
    )
    with pytest.raises(sr.InputError, match=rf"ended with code {code} while it built .*a\.onnx \(it said: "):
        engine_lint.lint(tmp_path / "a.onnx")


def test_bad_input(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_lint, "installed", lambda: True)
    with pytest.raises(sr.InputError, match="does not exist"):
        engine_lint.lint(tmp_path / "a.onnx")
    path = artifact(tmp_path / "a.onnx")
    manifest_path(path).write_text("{}", encoding="utf-8")
    with pytest.raises(sr.InputError, match="damaged"):
        engine_lint.lint(path)
