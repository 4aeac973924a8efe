"""Artifacts: what is written, and that nothing damaged, missing or newer is read."""

import dataclasses
import json
import shutil

import numpy as np
import onnx
import pytest
import torch

import selrel_zennit as sr
from networks import few_layers
from selrel_deploy import compile_explanation, read_artifact
from selrel_deploy.artifact import export
from selrel_deploy.artifact.format import OUTPUTS, golden_path, manifest_path, write_manifest
from selrel_deploy.compiler.rewriting import count_convolutions

from ..conftest import clip_with_ties


@pytest.fixture(scope="module")
def graph():
    model = few_layers()
    return compile_explanation(sr.build_method("dtd", model), torch.zeros(1, *model.spec.shape), sr.MotionSelection(2))


@pytest.fixture(scope="module")
def artifact(graph, tmp_path_factory):
    return export(graph, tmp_path_factory.mktemp("artifact") / "dtd.onnx")


@pytest.fixture
def copied(artifact, tmp_path):
    for file in (artifact, manifest_path(artifact), golden_path(artifact)):
        shutil.copy(file, tmp_path)
    return tmp_path / "dtd.onnx"


def test_what_an_artifact_says(artifact, graph):
    read = read_artifact(artifact)
    assert sorted(file.name for file in artifact.parent.iterdir()) == ["dtd.golden.npz", "dtd.json", "dtd.onnx"]
    assert read.clip_shape == graph.clip_shape
    assert read.num_classes == 5
    assert read.precision == "fp32"
    assert sr.MotionSelection(**read.selection) == sr.MotionSelection(2)
    assert read.info["method"] == "dtd"
    assert sr.ClipSpec.from_dict(read.info["clip_spec"]) == few_layers().spec
    assert read.versions["torch"] == torch.__version__.partition("+")[0] or read.versions["torch"] == torch.__version__


def test_the_onnx_file_is_plain(artifact, graph):
    model = onnx.load(artifact)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")] == [18]
    assert [entry.name for entry in model.graph.input] == ["clip", "target"]
    assert [entry.name for entry in model.graph.output] == list(OUTPUTS)
    names = [node.op_type for node in model.graph.node]
    assert not set(names) & {"MaxUnpool", "ScatterND", "ScatterElements", "OneHot", "GatherND", "Loop", "If"}
    products = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    # R·W of a linear layer is written as one more.
    linear = sum("/mm" in node.name for node in products)
    # Layers and their z⁺ are joined; the last convolution sums relevance over the clip's channels.
    ones = [entry.name for entry in model.graph.initializer if list(entry.dims) == [1, 3, 1, 1, 1]]
    sums = [node for node in products if node.input[1] in ones]
    assert len(sums) == 1
    assert len(products) - linear == count_convolutions(graph.form("onnx")) < graph.passes[-1].convolutions + len(sums)
    assert all(len(node.output) == 1 for node in model.graph.node if node.op_type == "MaxPool")
    weights = {entry.name for entry in model.graph.initializer}
    # A reshape of a constant moves nothing.
    weights |= {node.output[0] for node in model.graph.node if node.op_type == "Reshape" and node.input[0] in weights}
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            assert node.input[1] in weights, "a weight is computed at run time"


def test_golden_cases_are_the_graphs_and_their_logits_the_networks(artifact, graph):
    golden = read_artifact(artifact).golden()
    assert golden["clip"].shape == (12, *graph.clip_shape)
    assert golden["target"][::4].tolist() == [[-1]] * 3
    assert golden["target"][2::4].tolist() == [[4]] * 3
    assert not np.array_equal(golden["clip"][0], golden["clip"][4])
    for index in range(12):
        clip = torch.from_numpy(golden["clip"][index])
        outputs = graph(clip, torch.from_numpy(golden["target"][index]))
        for name, value in zip(OUTPUTS[1:], outputs[1:], strict=True):
            assert np.array_equal(golden[name][index], value.numpy())
        with torch.no_grad():
            assert np.array_equal(golden["logits"][index], graph.network(clip).numpy())
        np.testing.assert_allclose(golden["logits"][index], outputs[0].numpy(), rtol=1e-4, atol=1e-6)


def test_an_artifact_of_another_network_is_not_written(tmp_path):
    model = few_layers()
    graph = compile_explanation(sr.build_method("gradcam", model), torch.zeros(1, *model.spec.shape))
    with torch.no_grad():
        next(module for module in model.modules() if isinstance(module, torch.nn.Linear)).bias += 1
    with pytest.raises(sr.InputError, match=r"of another network than the one given \(logits differ by .*not written"):
        export(graph, tmp_path / "other.onnx")
    assert list(tmp_path.iterdir()) == []


def test_clips_and_info_may_be_the_callers(tmp_path):
    model = few_layers()
    graph = compile_explanation(sr.build_method("gradcam", model), torch.zeros(1, *model.spec.shape))
    clips = torch.cat([clip_with_ties(model.spec, seed) for seed in (0, 1)])
    path = export(graph, tmp_path / "own.onnx", clips=clips, info={"model": "mine"})
    read = read_artifact(path)
    assert read.info["model"] == "mine"
    assert np.array_equal(read.golden()["clip"][0], clips[:1].numpy())


@pytest.mark.parametrize("name", ["dtd.onnx", "dtd.json", "dtd.golden.npz"])
def test_a_changed_byte_in_any_file_is_found(copied, name):
    read_artifact(copied)
    file = copied.with_name(name)
    whole = file.read_bytes()
    places = {len(whole) // 2, len(whole) - 1} | ({20, 40, 60} if name == "dtd.json" else set())
    for place in places:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(sr.InputError, match=rf"{name}.*(hash differs|damaged)"):
            read_artifact(copied)
    file.write_bytes(whole)
    read_artifact(copied)
    file.unlink()
    with pytest.raises(sr.InputError, match=rf"{name} does not exist"):
        read_artifact(copied)


def test_schemas(copied):
    fields = json.loads(manifest_path(copied).read_text(encoding="utf-8"))
    del fields["manifest_sha256"]
    write_manifest({**fields, "schema": "2.9", "later": "addition"}, manifest_path(copied))
    read_artifact(copied)
    write_manifest({**fields, "schema": "3.0"}, manifest_path(copied))
    with pytest.raises(sr.InputError, match=r"schema 3\.0.*install a newer"):
        read_artifact(copied)
    write_manifest({**fields, "schema": "1.0"}, manifest_path(copied))
    with pytest.raises(sr.InputError, match=r"schema 1\.0.*export it again"):
        read_artifact(copied)
    del fields["selection"]
    write_manifest(fields, manifest_path(copied))
    with pytest.raises(sr.InputError, match="lacks 'selection'"):
        read_artifact(copied)
    for text in ("", "[]", "{}", '{"schema": 1}'):
        manifest_path(copied).write_text(text, encoding="utf-8")
        with pytest.raises(sr.InputError, match="damaged"):
            read_artifact(copied)


def test_what_cannot_be_exported(graph, tmp_path):
    model = few_layers().double()
    double = compile_explanation(sr.build_method("gradient", model), torch.zeros(1, *model.spec.shape).double())
    for arguments, message in (
        ((double, tmp_path / "a.onnx"), "float32"),
        ((graph, tmp_path / "a.pt"), r"ends in \.onnx"),
    ):
        with pytest.raises(sr.InputError, match=message):
            export(*arguments)
    with pytest.raises(sr.InputError, match="no field 'modle'"):
        export(graph, tmp_path / "a.onnx", info={"modle": "x"})
    with pytest.raises(sr.InputError, match="golden clips must be"):
        export(graph, tmp_path / "a.onnx", clips=torch.zeros(1, 3, 2, 2, 2))
    with pytest.raises(sr.InputError, match=r"part of an artifact.*without \.forward"):
        export(graph, tmp_path / "a.forward.onnx")
    with pytest.raises(sr.InputError, match="no bf16"):
        export(dataclasses.replace(graph, precision="bf16"), tmp_path / "a.onnx")
    with pytest.raises(sr.InputError, match=r"not an \.onnx"):
        read_artifact(tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())
