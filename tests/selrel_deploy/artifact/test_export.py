"""What an export can be asked for: frames as input, batches, class names, and nodes that say where they come from."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch

import selrel_zennit as sr
from conftest import REAL_CLIPS
from networks import few_layers
from selrel_deploy import compile_explanation, open_runner, read_artifact
from selrel_deploy.artifact import export
from selrel_deploy.artifact.format import OUTPUTS
from selrel_deploy.artifact.frames_input import FramesToClip
from selrel_deploy.parity.certify import certify_golden

SPECS = {
    "short side": sr.ClipSpec(),
    "exact size": sr.ClipSpec(short_side=(128, 171)),
    "scaled": sr.ClipSpec(
        short_side=128, value_range=(0, 1), mean=(0.43, 0.39, 0.37), std=(0.22, 0.23, 0.21), channel_order="BGR"
    ),
    "signed": sr.ClipSpec(value_range=(-1, 1), mean=(0.0, 0.0, 0.0)),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("size", [(240, 320), (112, 112), (100, 130), (300, 112), (33, 20), (128, 171), (224, 224)])
def test_frames_become_the_clip_of_the_spec(spec, size):
    """To the bit what OpenCV and NumPy make of them: enlarged, reduced, halved and left as they are."""
    rng = np.random.default_rng(size[0])
    frames = rng.integers(0, 256, (16, *size, 3), dtype=np.uint8)
    got = FramesToClip(spec, size)(torch.from_numpy(frames)[None])
    assert np.array_equal(got.numpy(), spec.array(frames))


@pytest.mark.skipif("SELREL_DATA" not in os.environ, reason="needs the real clips: set SELREL_DATA to their folder")
@pytest.mark.parametrize("name", REAL_CLIPS.values())
def test_real_frames_become_the_clip_of_the_spec(name):
    frames = sr.read_frames(Path(os.environ["SELREL_DATA"]) / name, count=16)
    for spec in SPECS.values():
        got = FramesToClip(spec, frames.shape[1:3])(torch.from_numpy(frames)[None])
        assert np.array_equal(got.numpy(), spec.array(frames))


def test_other_interpolations_are_refused_where_they_matter():
    spec = sr.ClipSpec(interpolation="area")
    with pytest.raises(sr.InputError, match=r"linearly alone.*by area.*--frame-size 112x149"):
        FramesToClip(spec, (240, 320))
    frames = np.random.default_rng(0).integers(0, 256, (16, 112, 149, 3), dtype=np.uint8)
    assert np.array_equal(FramesToClip(spec, (112, 149))(torch.from_numpy(frames)[None]).numpy(), spec.array(frames))


@pytest.mark.parametrize(("split", "batch"), [(False, 1), pytest.param(True, 2, marks=pytest.mark.slow)])
def test_an_artifact_takes_frames(split, batch, tmp_path):
    model = few_layers()
    size = (40, 50)
    graph = compile_explanation(sr.build_method("dtd", model), torch.zeros(batch, *model.spec.shape))
    path = export(graph, tmp_path / "frames.onnx", input="uint8", frame_size=size, split=split)
    artifact = read_artifact(path)
    assert (artifact.input, artifact.input_name) == ("uint8", "frames")
    assert artifact.frames_shape == artifact.input_shape == (batch, 8, *size, 3)
    assert artifact.clip_shape == (batch, 3, 8, 16, 16)
    golden = artifact.golden()
    assert golden["frames"].dtype == np.uint8
    assert golden["frames"].shape == (12, batch, 8, *size, 3)
    assert np.array_equal(golden["frames"][3], np.repeat(golden["frames"][0][:, 4:5], 8, 1))
    assert not np.array_equal(golden["frames"][0], golden["frames"][4])
    with open_runner(path, threads=1) as run:
        for index in (0, 5, 10):
            frames = golden["frames"][index]
            clip = np.concatenate([model.spec.array(one) for one in frames])
            got = run(frames, golden["target"][index])
            expected = graph(torch.from_numpy(clip), torch.from_numpy(golden["target"][index]))
            np.testing.assert_allclose(golden["logits"][index], expected[0].numpy(), rtol=1e-4, atol=1e-5)
            for name, value in zip(OUTPUTS[1:], expected[1:], strict=True):
                assert np.array_equal(golden[name][index], value.numpy())
            assert np.linalg.norm(got.relevance - golden["relevance"][index]) <= 1e-4 * np.linalg.norm(got.relevance)
    file = artifact.parts.get("forward") or artifact.parts["explanation"]
    first = next(entry for entry in onnx.load(file, load_external_data=False).graph.input if entry.name == "frames")
    assert first.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    if split:
        # What was made of the frames is handed over, not made again.
        explain = onnx.load(artifact.parts["explain"], load_external_data=False)
        assert "frames" not in {entry.name for entry in explain.graph.input}


@pytest.mark.slow
def test_a_batch_is_explained_clip_by_clip(tmp_path):
    """The golden cases of a batch are those of its clips, and its certificate is exact."""
    model = few_layers()
    attributor = sr.build_method("dtd", model)
    pair, single = (compile_explanation(attributor, torch.zeros(batch, *model.spec.shape)) for batch in (2, 1))
    path = export(pair, tmp_path / "batch.onnx")
    golden = read_artifact(path).golden()
    assert golden["clip"].shape == (12, 2, *model.spec.shape)
    assert golden["target"].shape == (12, 2)
    order = np.argsort(-golden["logits"][0], 1)
    assert np.array_equal(golden["target"][1], order[:, 1]), "the runner-up of each clip"
    assert np.array_equal(golden["target"][3], golden["explained_target"][0]), (
        "frozen, for the class of the moving clip"
    )
    for index in range(12):
        for place in range(2):
            one = (golden[name][index, place : place + 1] for name in ("clip", "target"))
            relevance = single(*map(torch.from_numpy, one))[OUTPUTS.index("relevance")].numpy()
            error = np.linalg.norm(golden["relevance"][index, place] - relevance[0])
            assert error <= 1e-5 * np.linalg.norm(relevance)
    with open_runner(path, threads=1) as run:
        assert certify_golden(run, run.artifact).grade == "exact"


def test_class_names_come_from_the_model(tmp_path):
    model = few_layers()
    model.class_names = ["a", "b", "c", "d", "e"]
    graph = compile_explanation(sr.build_method("gradient", model), torch.zeros(1, *model.spec.shape))
    assert read_artifact(export(graph, tmp_path / "named.onnx")).info["class_names"] == ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def dtd(tmp_path_factory):
    model = few_layers()
    graph = compile_explanation(sr.build_method("dtd", model), torch.zeros(1, *model.spec.shape))
    return export(graph, tmp_path_factory.mktemp("dtd") / "dtd.onnx")


def test_nodes_say_which_module_they_come_from(dtd):
    file = onnx.load(dtd)
    modules = {node.name: {entry.key: entry.value for entry in node.metadata_props} for node in file.graph.node}
    assert modules["conv2/convolution_1"] == {"module": "conv2"}
    convolutions = [node for node in file.graph.node if node.op_type in ("Conv", "Gemm")]
    assert {"conv1", "conv2", "fc1", "fc2"} <= {modules[node.name]["module"] for node in convolutions}
    assert len(set(modules)) == len(file.graph.node), "names are told apart"
    # Nothing of the machine that exported it.
    assert not file.metadata_props
    for text in (b"site-packages", b"stack_trace", os.fsencode(Path(__file__).parents[3])):
        assert text not in file.SerializeToString()


def test_linear_weights_are_there_once(dtd):
    """Forward and relevance read one copy: floats of the network, and as many for z⁺ as it has weights."""
    file = onnx_ir.load(dtd)
    matrices = [value for value in file.graph.initializers.values() if len(value.shape) == 2 and value.dtype == 1]
    assert sorted(tuple(value.shape) for value in matrices) == sorted([(16, 600), (5, 16)] * 2)
    assert not [node for node in file.graph if node.op_type == "MatMul" and node.inputs[1] in matrices]


@pytest.mark.slow
def test_int8_is_explicit_quantisation(tmp_path):
    """QuantizeLinear and DequantizeLinear around plain convolutions, int8 weights; split, on frames too."""
    model = few_layers()
    attributor = sr.build_method("dtd", model)
    graph = compile_explanation(attributor, torch.zeros(1, *model.spec.shape), precision="fp32+int8")
    path = export(graph, tmp_path / "a.onnx", split=True, input="uint8", frame_size=(20, 24))
    assert read_artifact(path).precision == "fp32+int8"
    forward, explain = (onnx.load(file) for file in read_artifact(path).parts.values())
    assert not {node.op_type for node in forward.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    makers = {node.output[0]: node for node in explain.graph.node}
    weights = {entry.name: entry.data_type for entry in explain.graph.initializer}
    quantised = [
        node
        for node in explain.graph.node
        if node.op_type == "Conv" and all(makers.get(name) is not None for name in node.input[:2])
        if all(makers[name].op_type == "DequantizeLinear" for name in node.input[:2])
    ]
    assert quantised
    for node in quantised:
        assert makers[makers[node.input[0]].input[0]].op_type == "QuantizeLinear"
        assert weights[makers[node.input[1]].input[0]] == onnx.TensorProto.INT8
    with open_runner(path, threads=1) as run:
        assert certify_golden(run, run.artifact).grade in ("exact", "faithful")


def test_what_frames_cannot_be(tmp_path):
    model = few_layers()
    attributor = sr.build_method("gradient", model)
    graph = compile_explanation(attributor, torch.zeros(1, *model.spec.shape))
    larger = compile_explanation(attributor, torch.zeros(1, 3, 9, 16, 16))
    for made, arguments, message in (
        (graph, {"input": "uint8"}, "needs the height and width"),
        (graph, {"input": "uint8", "frame_size": (0, 4)}, "needs the height and width"),
        (graph, {"frame_size": (4, 4)}, "goes with the input uint8"),
        (graph, {"input": "int8"}, "no input 'int8'"),
        (graph, {"input": "uint8", "frame_size": (20, 20), "info": {"clip_spec": None}}, "needs a ClipSpec"),
        (larger, {"input": "uint8", "frame_size": (20, 20)}, "makes clips"),
        (graph, {"input": "uint8", "frame_size": (20, 20), "clips": torch.zeros(1, 8, 20, 20, 3)}, "torch.uint8"),
    ):
        with pytest.raises(sr.InputError, match=message):
            export(made, tmp_path / "a.onnx", **arguments)
    assert not list(tmp_path.iterdir())
