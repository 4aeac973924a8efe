"""What a person on a device meets: batches, arrays alone, artifacts elsewhere; one sentence for each mistake."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import networks
import selrel_zennit as sr
from selrel_deploy import compile_explanation
from selrel_deploy.artifact import export
from selrel_zennit.cli import main
from selrel_zennit.clips.video import write_png

METHOD = ["--weights", "own", "--method", "lrp_epsilon_plus"]
PICTURES = {"overlay.mp4", "strip.png", "report.html"}
ARRAYS = {"explanation.npz", "summary.json"}


KINDS_OF_TWO = [
    ("two", {}),
    ("split_two", {"split": True}),
    ("frames_two", {"input": "uint8", "frame_size": (20, 24)}),
]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A folder of frames for three clips and a rest: a square that crosses a scene which grows dark."""
    folder, span = tmp_path_factory.mktemp("video"), networks.few_layers().spec.span
    scene = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    for step in range(3 * span + 2):
        frame = scene // (step // span + 1)
        frame[4:9, step % 16 : step % 16 + 5] = (255, 40, 0)
        write_png(folder / f"{step:03d}.png", frame)
    return str(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Artifacts of one method: of one clip at a time and of two, whole and split, of clips and of frames."""
    folder = tmp_path_factory.mktemp("small")
    model = sr.load_model("networks:few_layers", "own")
    for batch, kinds in {1: [("one", {})], 2: KINDS_OF_TWO}.items():
        attributor = sr.build_method("lrp_epsilon_plus", model)
        graph = compile_explanation(attributor, torch.zeros(batch, *model.spec.shape))
        for name, options in kinds:
            export(graph, folder / f"{name}.onnx", **options)
    return folder


def run(artifact, video, out, *options):
    assert main(["run", str(artifact), video, "--no-pictures", "--out", str(out), *options]) == 0
    with np.load(out / "explanation.npz") as arrays:
        return dict(arrays), json.loads((out / "summary.json").read_text("utf-8"))


def assert_same(found, expected):
    for arrays, right in zip(found, expected, strict=True):
        if "relevance" not in arrays:
            continue
        assert np.array_equal(arrays["frames"], right["frames"])
        assert np.array_equal(arrays["target"], right["target"])
        assert np.allclose(arrays["logits"], right["logits"], rtol=1e-4, atol=1e-4)
        for one, other in zip(arrays["relevance"], right["relevance"], strict=True):
            assert np.linalg.norm(one - other) <= 1e-4 * np.linalg.norm(other)
    for clip, other in zip(found[1]["clips"], expected[1]["clips"], strict=True):
        for key in ("start", "motion_mass", "frozen_mass", "relevance_sum"):
            assert clip[key] == pytest.approx(other[key], rel=1e-2), key
    assert found[1]["target"] == expected[1]["target"]


@pytest.mark.parametrize("kind", [name for name, _ in KINDS_OF_TWO])
def test_a_batch_is_filled_with_successive_clips(small, video, tmp_path, kind):
    """Three clips, two at a time: each is explained as it is alone, and what fills the last batch is not kept."""
    expected = run(small / "one.onnx", video, tmp_path / "one", "--all-clips")
    assert len(expected[0]["relevance"]) == 3
    assert not np.allclose(expected[0]["relevance"][0], expected[0]["relevance"][1])
    assert_same(run(small / f"{kind}.onnx", video, tmp_path / "two", "--all-clips"), expected)


def test_a_batch_for_one_clip(small, video, tmp_path):
    expected = run(small / "one.onnx", video, tmp_path / "one", "--start", "3")
    found = run(small / "two.onnx", video, tmp_path / "two", "--start", "3")
    assert_same(found, expected)
    assert "the artifact explains 2 clips at once: one alone costs as much as all" in found[1]["notes"]


@pytest.mark.parametrize("kind", ["two", "split_two"])
def test_a_batch_of_which_some_clips_meet_a_condition(small, video, tmp_path, kind):
    every = run(small / "one.onnx", video, tmp_path / "every", "--all-clips", "--explain-when", "any:0")[1]
    counted = sorted(clip["probability"] for clip in every["explain_when"]["clips"])
    limit = f"any:{(counted[1] + counted[2]) / 2}"
    expected = run(small / "one.onnx", video, tmp_path / "one", "--all-clips", "--explain-when", limit)
    assert len(expected[0]["relevance"]) == 1
    found = run(small / f"{kind}.onnx", video, tmp_path / "two", "--all-clips", "--explain-when", limit)
    assert_same(found, expected)
    seen, right = (
        [(clip["start"], clip["explained"]) for clip in one[1]["explain_when"]["clips"]] for one in (found, expected)
    )
    assert seen == right


def test_arrays_alone(small, video, tmp_path, capsys):
    """They are those that come with pictures, of which none of an earlier run may stay beside them."""
    whole = [str(small / "one.onnx"), video, "--no-frozen", "--out", str(tmp_path)]
    assert main(["run", *whole]) == 0
    assert {path.name for path in tmp_path.iterdir()} == PICTURES | ARRAYS
    with np.load(tmp_path / "explanation.npz") as arrays:
        expected = dict(arrays)
    capsys.readouterr()
    assert main(["run", *whole, "--no-pictures"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == ARRAYS
    assert f"wrote explanation.npz, summary.json to {tmp_path}" in capsys.readouterr().out
    with np.load(tmp_path / "explanation.npz") as arrays:
        assert all(np.array_equal(arrays[name], expected[name]) for name in expected)
    assert json.loads((tmp_path / "summary.json").read_text("utf-8"))["overlay"] is None


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("selrel: error: ")
    assert said.count("\n") == 1
    return said


def test_what_is_not_there_is_named_as_it_was_asked_for(small, tmp_path, capsys):
    for name in ("nope.onnx", "nope.forward.onnx", "nope.json"):
        said = refused(capsys, "run", tmp_path / name)
        assert f"{tmp_path / name} does not exist: give the NAME.onnx of an artifact" in said
    # Where the graph is there, what belongs to it is what is missing; a split one is called by a file that is not.
    (tmp_path / "bare.onnx").write_bytes((small / "one.onnx").read_bytes())
    assert "bare.json does not exist; it belongs to bare.onnx" in refused(capsys, "run", tmp_path / "bare.onnx")
    (tmp_path / "half.forward.onnx").write_bytes((small / "split_two.forward.onnx").read_bytes())
    assert "half.json does not exist; it belongs to half.onnx" in refused(capsys, "run", tmp_path / "half.onnx")


def test_an_artifact_of_frames_needs_a_video(small, tmp_path, capsys):
    said = refused(capsys, "run", small / "frames_two.onnx", "--out", tmp_path / "out")
    assert "takes frames of 24×20 pixels, and the embedded clip has others: give a VIDEO of that size" in said


OWN = """
from networks import few_layers


def make(num_classes=5):
    return few_layers()
"""


def test_parity_in_another_folder(tmp_path, capsys, monkeypatch):
    """Against Zennit it needs the network's module: where that is not, the remedies are ones that parity has."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, name in ((here, "own_network_of_here"), (there, "own_network_of_there")):
        folder.mkdir()
        (folder / f"{name}.py").write_text(OWN)
    path = here / "x.onnx"
    monkeypatch.chdir(here)
    assert main(["export", "--model", "own_network_of_here:make", *METHOD, "-o", "x.onnx"]) == 0
    for module in [name for name in sys.modules if name.startswith("own_network")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.chdir(there)
    assert main(["parity", str(path)]) == 0
    said = refused(capsys, "parity", path, "--against", "zennit")
    assert "was made from own_network_of_here:make, and there is no module own_network_of_here here: " in said
    assert "call this where it is, give --model package.module:factory, or compare with the golden cases" in said
    assert main(["parity", str(path), "--against", "zennit", "--model", "own_network_of_there:make"]) == 0
    monkeypatch.chdir(here)
    assert main(["parity", str(path), "--against", "zennit"]) == 0
    assert "--model goes with --against zennit" in refused(capsys, "parity", path, "--model", "a:b")


LIGHT = """
import sys

class Light:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "zennit"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Light())
from selrel_zennit.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_lists_without_torch_are_lists_or_one_sentence():
    for what in ("methods", "models", "composites", "runners", "presets"):
        done = subprocess.run(
            [sys.executable, "-c", LIGHT, "list", what], capture_output=True, text=True, env=os.environ, check=False
        )
        if done.returncode == 0:
            assert done.stdout
            assert not done.stderr
            continue
        assert done.returncode == 2
        assert done.stderr.startswith(f"selrel: error: selrel list {what} needs ")
        assert done.stderr.endswith(", which is not installed: pip install selrel-zennit\n")
        assert done.stderr.count("\n") == 1
        assert what in ("models", "composites", "presets")
