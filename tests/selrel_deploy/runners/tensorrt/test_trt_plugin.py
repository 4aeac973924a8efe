"""An artifact's selection as one node of the TensorRT plugin, and what TensorRT-RTX's parser and builder say of it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

import selrel_zennit as sr
from kernel_cases import HOST
from networks import FewLayers, few_layers
from selrel_deploy import Artifact, compile_explanation, read_artifact
from selrel_deploy.artifact import export
from selrel_deploy.runners.tensorrt import engine_lint
from selrel_deploy.runners.tensorrt.plugin import DOMAIN, PLUGIN, THRESHOLDS, main, with_motion_plugin
from selrel_kernels import plugin, select_motion
from selrel_zennit.selection.relevance_source import RelevanceSource

from ...conftest import clip_with_ties

SELECTIONS = {
    "default": {"n_sigma": 2.0},
    "author-2020": {"n_sigma": 0.5, "sign": "falling", "border": "zero", "normalise": "author-2020"},
    "calibrated": {"thresholds": (1e-2, 2e-2, 5e-3, 1e-2, 1e-2, 2e-2, 1e-2, 5e-3)},
}


def made(folder: Path, name: str) -> Artifact:
    """Export an artifact with a selection; that of author-2020 in two parts."""
    attributor = sr.build_method("gradient_x_input", few_layers())
    settings = SELECTIONS[name]
    selection: Any = sr.MotionSelection(**settings) if name != "calibrated" else None
    if selection is None:
        selection = sr.CalibratedSelection(alpha=0.01, made_for=RelevanceSource.of(attributor), **settings)
    graph = compile_explanation(attributor, torch.zeros(1, *FewLayers.spec.shape), selection=selection)
    clips, split = clip_with_ties(FewLayers.spec, 1), name == "author-2020"
    return read_artifact(export(graph, folder / "a.onnx", clips=clips, split=split))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return {name: made(tmp_path_factory.mktemp("plugin"), name) for name in SELECTIONS}


def plugin_node(model: onnx.ModelProto) -> onnx.NodeProto:
    (node,) = [node for node in model.graph.node if node.op_type == PLUGIN]
    assert node.domain == DOMAIN
    return node


def fields(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes that reach the plugin, as it reads them."""
    values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    assert (values.pop("plugin_version"), values.pop("plugin_namespace")) == (b"1", b"")
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def without_plugin(path: Path) -> Path:
    """Write what stands before the plugin to a file beside ``path``, as a runtime without it can run it."""
    model = onnx.load(path, load_external_data=False)
    node = plugin_node(model)
    after = [other for other in model.graph.node if set(other.input) & set(node.output)]
    assert [(other.op_type, list(other.output)) for other in after] == [("Cast", ["mask"])]
    for other in (node, *after):
        model.graph.node.remove(other)
    for value in list(model.graph.output):
        if value.name in ("motion_relevance", "mask"):
            model.graph.output.remove(value)
    onnx.save(model, path.with_name("before.onnx"))
    return path.with_name("before.onnx")


def run(path: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    given = {entry.name: feeds[entry.name] for entry in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


@pytest.mark.parametrize("name", SELECTIONS)
def test_the_node_stands_for_the_selection(artifacts: dict[str, Artifact], name: str) -> None:
    artifact = artifacts[name]
    part = artifact.parts["explain" if artifact.split else "explanation"]
    path = with_motion_plugin(artifact.path, part.with_suffix(".plugin.onnx"))
    assert read_artifact(artifact.path).sha256 == artifact.sha256
    onnx.checker.check_model(path, full_check=True)
    before, after = (onnx.load(file, load_external_data=False) for file in (part, path))
    assert [*after.graph.input] == [*before.graph.input]
    assert [*after.graph.output] == [*before.graph.output]
    assert len(after.graph.node) < len(before.graph.node) - 20
    read = {entry for node in after.graph.node for entry in node.input}
    assert {tensor.name for tensor in after.graph.initializer} <= read

    node = plugin_node(after)
    settings = fields(node)
    assert list(node.input) == (["relevance", THRESHOLDS] if name == "calibrated" else ["relevance"])
    if name == "calibrated":
        (constant,) = [tensor for tensor in after.graph.initializer if tensor.name == THRESHOLDS]
        settings = {"thresholds": numpy_helper.to_array(constant)}
        assert settings["thresholds"].dtype == np.float32
    golden, rest = artifact.golden(), without_plugin(path)
    for clip, target in zip(golden["clip"], golden["target"], strict=True):
        feeds = {"clip": clip, "target": target}
        if artifact.split:
            feeds |= run(artifact.parts["forward"], feeds)
        expected, found = run(part, feeds), run(rest, feeds)
        for output in set(found):
            assert np.array_equal(found[output], expected[output])
        motion, mask = select_motion(found["relevance"], **settings)
        # Sums of another order put a voxel that lies on its threshold on the other side of it.
        agreed = mask == expected["mask"]
        assert np.mean(~agreed) <= 1e-3
        assert np.array_equal(motion[agreed], expected["motion_relevance"][agreed])
    assert 0 < golden["mask"][0].mean() < 1


def test_paths_that_are_refused(artifacts: dict[str, Artifact], tmp_path: Path, capsys: Any) -> None:
    artifact = artifacts["default"]
    with pytest.raises(sr.InputError, match="is a file of the artifact: give another name"):
        with_motion_plugin(artifact.path, artifact.path)
    with pytest.raises(sr.InputError, match=r"ends in \.onnx"):
        with_motion_plugin(artifact.path, artifact.path.with_suffix(".engine"))
    with pytest.raises(sr.InputError, match=r"write b\.onnx to the same folder"):
        with_motion_plugin(artifacts["author-2020"].path, tmp_path / "b.onnx")
    assert not list(tmp_path.iterdir())
    assert main([str(artifact.path), str(artifact.path)]) == 2
    assert "is a file of the artifact" in capsys.readouterr().err
    assert main([str(artifact.path)]) == 2
    assert "usage" in capsys.readouterr().err
    assert read_artifact(artifact.path).sha256 == artifact.sha256


def test_the_command_line(artifacts: dict[str, Artifact], tmp_path: Path, capsys: Any) -> None:
    assert main([str(artifacts["default"].path), str(tmp_path / "out.onnx")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out.onnx'}\n"
    assert plugin_node(onnx.load(tmp_path / "out.onnx"))


# In a process of its own, as engine_lint: what goes wrong in a native library ends this process and no other.
BUILD = """
import sys
import tensorrt_rtx_bindings as trt

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, message):
        if severity <= trt.ILogger.Severity.ERROR:
            print("said", message)

library, *models = sys.argv[1:]
log = Log()
builder = trt.Builder(log)
assert builder.get_plugin_registry().load_library(library) is not None
for path in models:
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    print("parsed", parser.parse_from_file(path))
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    print("plugins", sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers))
    if layers:
        for index in range(network.num_outputs):
            value = network.get_output(index)
            print("output", value.name, value.dtype, *value.shape)
        plan = builder.build_serialized_network(network, builder.create_builder_config())
        print("plan", plan is not None and plan.nbytes > 0)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What nvcc makes of the plugin, with the stand-in for TensorRT's header."""
    if not shutil.which("nvcc"):
        pytest.skip("needs nvcc, the compiler of the CUDA toolkit")
    return plugin.compile_plugin(HOST / "tensorrt", tmp_path_factory.mktemp("library"), [90])


OPEN = """
import ctypes
import sys

tensorrt, library = sys.argv[1:]
registry = ctypes.CDLL(tensorrt)  # not in the global scope, as Triton's backend loads it
opened = ctypes.CDLL(library)
assert registry.held_creators() == 1, "it does not register itself"
count = ctypes.c_int32()
opened.getCreators.restype = ctypes.POINTER(ctypes.c_void_p)
assert opened.getCreators(ctypes.byref(count))[0]
assert (count.value, registry.held_creators()) == (1, 0), "loadLibrary() would find it registered"
"""


def test_the_library_registers_itself_where_tensorrt_is_loaded(library: Path, tmp_path: Path) -> None:
    tensorrt = tmp_path / "libnvinfer.so.10"
    command = ["g++", "-std=c++17", "-shared", "-fPIC", "-Wl,-soname,libnvinfer.so.10", f"-I{HOST / 'cuda'}"]
    command += [f"-I{HOST / 'tensorrt'}", "-include", HOST / "registry.h", "-x", "c++", "/dev/null", "-o", tensorrt]
    subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run([sys.executable, "-c", OPEN, tensorrt, library], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not engine_lint.installed(), reason="needs TensorRT-RTX: pip install 'selrel-zennit[trt-lint]'")
def test_tensorrt_rtx_takes_the_library_and_the_graph(
    artifacts: dict[str, Artifact], library: Path, tmp_path: Path
) -> None:
    """Its registry loads what nvcc built, its parser finds the plugin, its builder makes an engine. None is run."""
    names = ("default", "calibrated")
    paths = [with_motion_plugin(artifacts[name].path, tmp_path / f"{name}.onnx") for name in names]
    wrong = onnx.load(paths[0])
    (sign,) = [entry for entry in plugin_node(wrong).attribute if entry.name == "sign"]
    sign.s = b"up"
    onnx.save(wrong, tmp_path / "wrong.onnx")
    # The parser opens the library by a name that its package does not install.
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    assert found is not None
    assert found.origin is not None
    (tmp_path / "libtensorrt_rtx.so").symlink_to(Path(found.origin).with_name("libtensorrt_rtx.so.1"))
    command = [sys.executable, "-c", BUILD, str(library), *map(str, paths), str(tmp_path / "wrong.onnx")]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    taken = [
        "parsed True",
        "plugins 1",
        "output logits DataType.FLOAT 1 5",
        "output explained_target DataType.INT64 1",
        "output relevance DataType.FLOAT 1 8 16 16",
        "output motion_relevance DataType.FLOAT 1 8 16 16",
        "output mask DataType.BOOL 1 8 16 16",
        "plan True",
    ]
    assert said[: 2 * len(taken)] == 2 * taken
    assert [line for line in said if line.startswith("parsed")][-1] == "parsed False"
    # TensorRT-RTX hands the plugin no logger while it parses.
    assert "SelectMotion: sign cannot be 'up'" in [*done.stderr.splitlines(), *(line[5:] for line in said)]
