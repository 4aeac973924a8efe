"""Split artifacts and weights outside: the same numbers from two files, each weight stored once."""

import functools
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import selrel_zennit as sr
from networks import few_layers, small_c3d
from selrel_deploy import compile_explanation, open_runner, read_artifact
from selrel_deploy.artifact import export
from selrel_deploy.artifact.format import MODULE, OUTPUTS

from ..conftest import clip_with_ties

# Of the methods those that need most and least of the forward pass, and one that needs values before a ReLU.
CASES = [("dtd", few_layers), pytest.param("guided_gradcam", few_layers, marks=pytest.mark.slow)]
MODELS = {few_layers: few_layers()}


@functools.cache
def compiled(method, network=few_layers):
    model = MODELS[network]
    return compile_explanation(sr.build_method(method, model), torch.zeros(1, *model.spec.shape))


@pytest.fixture(scope="module")
def split_gradcam(tmp_path_factory):
    path = tmp_path_factory.mktemp("gradcam") / "a.onnx"
    return read_artifact(export(compiled("gradcam", few_layers), path, split=True))


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path, feeds):
    made = session(path)
    names = [entry.name for entry in made.get_outputs()]
    return dict(
        zip(names, made.run(names, {entry.name: feeds[entry.name] for entry in made.get_inputs()}), strict=True)
    )


def run_parts(artifact, clip, target):
    given = {artifact.input_name: clip, "target": target}
    forward = run(artifact.parts["forward"], given)
    assert list(forward) == ["logits", *artifact.activations]
    return {"logits": forward["logits"], **run(artifact.parts["explain"], {**given, **forward})}


@pytest.mark.parametrize(("method", "network"), CASES)
def test_two_parts_compute_what_the_single_graph_does(method, network, tmp_path):
    graph = compiled(method, network)
    clips = torch.cat([clip_with_ties(MODELS[network].spec, seed) for seed in (0, 1)])
    whole = read_artifact(export(graph, tmp_path / "whole.onnx", clips=clips))
    split = read_artifact(export(graph, tmp_path / "split.onnx", clips=clips, split=True))
    golden = split.golden()
    for clip, target in zip(golden["clip"], golden["target"], strict=True):
        expected = run(whole.path, {"clip": clip, "target": target})
        got = run_parts(split, clip, target)
        for name in OUTPUTS:
            scale = np.abs(expected[name].astype(float)).max() or 1
            assert np.abs(got[name].astype(float) - expected[name]).max() <= 1e-6 * scale, name


def products(path):
    """Return the sizes of the weights of all convolutions and linear layers of a file, each module's together.

    A module's convolution may be there in pieces, each with some of the kernel's places in time.
    """
    file = onnx.load(path)
    shapes = {entry.name: list(entry.dims) for entry in file.graph.initializer}
    found = {}
    for node in file.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            module = next((entry.value for entry in node.metadata_props if entry.key == MODULE), node.name)
            shape = shapes[node.input[1]]
            if module in found:
                before = found[module]
                assert [before[:2], before[3:]] == [shape[:2], shape[3:]]
                shape = [*shape[:2], before[2] + shape[2], *shape[3:]]
            found[module] = shape
    return sorted(found.values())


@pytest.mark.slow
def test_the_forward_part_is_the_forward_pass(tmp_path):
    """It holds the network's own layers and hands over what they give anyway, after their ReLUs."""
    model = small_c3d(width=20)  # more channels than the compiler joins
    graph = compile_explanation(sr.build_method("dtd", model), torch.zeros(1, *model.spec.shape))
    split = read_artifact(export(graph, tmp_path / "split.onnx", split=True))
    plain = tmp_path / "plain.onnx"
    example = torch.zeros(1, *model.spec.shape)
    torch.onnx.export(model, (example,), plain, dynamo=True, opset_version=18, verbose=False)
    assert products(split.parts["forward"]) == products(plain)
    forward = onnx.load(split.parts["forward"])
    sums = {node.output[0] for node in forward.graph.node if node.op_type in ("Conv", "Add")} & set(split.activations)
    # A convolution whose sums are handed over loses its fused ReLU, unless that stands behind a pool all the same.
    assert sums
    assert not [node for node in forward.graph.node if node.op_type == "Relu" and node.input[0] in sums]


def test_explain_takes_only_what_it_needs(split_gradcam):
    """Grad-CAM reads the last convolution alone: neither the clip nor the lower layers are handed over."""
    split = split_gradcam
    names = [entry.name for entry in session(split.parts["explain"]).get_inputs()]
    assert "clip" not in names
    assert len(split.activations) <= 4
    modules = {
        entry.value
        for node in onnx.load(split.parts["explain"], load_external_data=False).graph.node
        for entry in node.metadata_props
    }
    assert not modules & {"conv1", "conv2"}


@pytest.mark.slow
def test_cheap_steps_are_done_again_rather_than_handed_over(tmp_path):
    """The Epsilon rule needs what comes before a ReLU, and after: one of the two is handed over."""
    split = read_artifact(export(compiled("lrp_epsilon_plus", few_layers), tmp_path / "split.onnx", split=True))
    forward = onnx.load(split.parts["forward"], load_external_data=False)
    before = {node.input[0] for node in forward.graph.node if node.op_type == "Relu"}
    after = {node.input[0]: node.output[0] for node in forward.graph.node if node.op_type == "Relu"}
    handed = set(split.activations)
    assert before & handed, "the network tests nothing"
    assert not [name for name in before & handed if after[name] in handed]


def weights_of(path):
    """Return (offset, length) of every weight that lies outside, and bytes of what lies inside."""
    inside, outside = 0, {}
    for entry in onnx.load(path, load_external_data=False).graph.initializer:
        where = {item.key: item.value for item in entry.external_data}
        if where:
            assert where["location"] == path.name.split(".")[0] + ".data"
            outside[entry.name] = (int(where["offset"]), int(where["length"]))
        else:
            inside += len(entry.raw_data)
    return inside, outside


@pytest.mark.slow
def test_every_weight_is_stored_once(tmp_path):
    artifact = read_artifact(export(compiled("gradient", few_layers), tmp_path / "split.onnx", split=True))
    data = (tmp_path / "split.data").read_bytes()
    places = set()
    shared = []
    for part in artifact.parts.values():
        inside, outside = weights_of(part)
        assert inside < 20_000
        shared.append(set(outside.values()))
        places |= set(outside.values())
    assert shared[0] & shared[1], "both directions read the linear layers' weights"
    contents = [data[offset : offset + length] for offset, length in sorted(places)]
    assert len(set(contents)) == len(contents)
    assert len(data) <= sum(map(len, contents)) + 4096 * len(contents)
    assert all(offset % 4096 == 0 for offset, _ in places)


@pytest.mark.slow
def test_weights_outside_run_in_onnxruntime_and_openvino(tmp_path):
    """What a network of more than 2 GB would get; forced here on a small one."""
    graph = compiled("dtd", few_layers)
    inside = export(graph, tmp_path / "inside.onnx")
    outside = export(graph, tmp_path / "outside.onnx", external_data=True)
    assert sorted(read_artifact(outside).files) == ["outside.data", "outside.golden.npz", "outside.onnx"]
    assert outside.stat().st_size < inside.stat().st_size / 5
    clip = clip_with_ties(MODELS[few_layers].spec, 0).numpy()
    with open_runner(inside, threads=1) as one, open_runner(outside, threads=1) as other:
        assert np.array_equal(one(clip).relevance, other(clip).relevance)
        expected = one(clip).relevance
    pytest.importorskip("openvino", reason="needs the extra openvino")
    with open_runner(outside, "openvino", threads=2) as other:
        assert np.linalg.norm(other(clip).relevance - expected) <= 1e-3 * np.linalg.norm(expected)


def test_larger_than_protobuf_goes_outside(tmp_path, monkeypatch):
    from selrel_deploy.artifact import export as module  # the function; its module holds the limit

    monkeypatch.setitem(module.__globals__, "_LARGEST", 1000)
    path = export(compiled("gradcam"), tmp_path / "large.onnx")
    assert "large.data" in read_artifact(path).files


@pytest.mark.parametrize("name", ["a.forward.onnx", "a.explain.onnx", "a.data", "a.golden.npz", "a.json"])
def test_a_changed_byte_is_found_by_any_name_of_the_artifact(split_files, tmp_path, name):
    for file in split_files:
        shutil.copy(file, tmp_path)
    called = tmp_path / "a.onnx"
    for other in (called, tmp_path / name):
        assert read_artifact(other).path == called
    whole = (tmp_path / name).read_bytes()
    for place in (len(whole) // 3, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(sr.InputError, match=rf"{name}.*(hash differs|damaged)"):
            read_artifact(called)
    (tmp_path / name).unlink()
    with pytest.raises(sr.InputError, match=rf"{name} does not exist"):
        read_artifact(called)


@pytest.fixture
def split_files(split_gradcam):
    return sorted(split_gradcam.path.parent.iterdir())


def test_another_name_would_lose_the_weights(split_files, tmp_path):
    for file in split_files:
        shutil.copy(file, tmp_path / file.name.replace("a.", "b.", 1))
    with pytest.raises(sr.InputError, match=r"was exported as a, .* a\.data: keep that name"):
        read_artifact(tmp_path / "b.onnx")


@pytest.mark.slow
def test_an_export_of_another_kind_leaves_nothing_stale(split_files, tmp_path):
    for file in split_files:
        shutil.copy(file, tmp_path)
    (tmp_path / "b.data").write_bytes(b"someone else's")
    for name in ("a", "b"):
        export(compiled("gradcam"), tmp_path / f"{name}.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        ["a.golden.npz", "a.json", "a.onnx", "b.golden.npz", "b.json", "b.onnx", "b.data"]
    )
