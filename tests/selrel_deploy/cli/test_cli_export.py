"""`selrel export` as a user calls it."""

import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

import selrel_zennit as sr
from conftest import REAL_CLIPS
from selrel_deploy import open_runner, read_artifact
from selrel_deploy.runners.tensorrt.engine_lint import Refusal, Report
from selrel_zennit.cli import main
from selrel_zennit.clips.video import write_png
from selrel_zennit.files import sha256_file

SMALL = ["--model", "networks:few_layers", "--weights", "own"]


@pytest.mark.slow
def test_the_embedded_model_with_calibrated_thresholds(tmp_path, capsys):
    """It runs, and every file and pass is said."""
    out = tmp_path / "new" / "cam.onnx"
    arguments = ["--method", "gradcam", "--preset", "calibrated", "--alpha", "0.01", "--explain-passes"]
    assert main(["export", "-o", str(out), *arguments]) == 0
    printed, said = capsys.readouterr()
    lines = printed.splitlines()
    assert lines[0].split()[:1] == ["trace"]
    assert lines[0].endswith("MB of constants")
    artifact = read_artifact(out)
    assert artifact.info["method"] == "gradcam"
    assert artifact.info["layout"] == sr.load_model("demo").provenance["layout"]
    assert artifact.info["class_names"] == sr.load_model("demo").class_names
    assert "gradcam on demo, fp32: float [1,3,16,112,112]" in lines
    for name, sha256 in artifact.files.items():
        line = next(line for line in lines if line.startswith(name))
        assert line.endswith(sha256)
        assert f"{(out.parent / name).stat().st_size / 1e6:.1f} MB" in line
    assert lines[-1].endswith(artifact.sha256)
    assert not [line for line in said.splitlines() if "thresholds" not in line]
    assert artifact.selection["alpha"] == 0.01
    assert len(artifact.selection["thresholds"]) == 16
    golden = artifact.golden()
    with open_runner(out, threads=1) as run:
        assert np.allclose(run(golden["clip"][0]).relevance, golden["relevance"][0], atol=1e-6)


def test_all_options_together(tmp_path, capsys):
    frames = tmp_path / "frames"
    frames.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 24, 3), dtype=np.uint8)
    for step, picture in enumerate(pixels):
        write_png(frames / f"{step:02d}.png", picture)
    out = tmp_path / "a.onnx"
    arguments = [*SMALL, "--method", "lrp_epsilon_plus", "--option", "epsilon=1e-4", "--preset", "paper"]
    arguments += ["--n-sigma", "2.5", "--split", "--input", "uint8", "--frame-size", "20x24", "--batch", "2"]
    assert main(["export", "-o", str(out), *arguments, "--golden-clips", str(frames), "--json", "-"]) == 0
    printed, said = capsys.readouterr()
    figures = json.loads(printed)
    artifact = read_artifact(out)
    assert artifact.split
    assert artifact.frames_shape == (2, 8, 20, 24, 3)
    assert artifact.info["options"] == {"epsilon": 1e-4, "zero_params": None, "gamma": None}
    assert sr.MotionSelection(**artifact.selection) == sr.MotionSelection.preset("paper", n_sigma=2.5)
    golden = artifact.golden()["frames"]
    assert golden.shape[:2] == (4, 2)
    assert np.array_equal(golden[0], np.stack([pixels[:8]] * 2)), "one video fills the batch"
    assert figures["sha256"] == artifact.sha256
    assert {name: file["sha256"] for name, file in figures["files"].items()} == artifact.files
    assert figures["parts"] == {"forward": "a.forward.onnx", "explain": "a.explain.onnx"}
    assert figures["passes"][0]["name"] == "trace"
    assert "zero_params='bias'" in said
    assert any("zero_params='bias'" in text for text in figures["warnings"])


@pytest.mark.slow
@pytest.mark.skipif("SELREL_DATA" not in os.environ, reason="needs the real clips: set SELREL_DATA to their folder")
def test_golden_clips_of_real_videos(tmp_path, capsys):
    videos = [str(Path(os.environ["SELREL_DATA"]) / name) for name in REAL_CLIPS.values()]
    out = tmp_path / "a.onnx"
    wanted = [text for video in videos for text in ("--golden-clips", video)]
    assert main(["export", "-o", str(out), *SMALL, "--method", "gradcam", *wanted]) == 0
    golden = read_artifact(out).golden()["clip"]
    spec = sr.ClipSpec(frames=8, short_side=16, crop=16)
    for index, video in enumerate(videos):
        assert np.array_equal(golden[4 * index], spec.array(sr.read_frames(video, count=8)))
    capsys.readouterr()


def test_an_export_with_all_that_it_can_write_hashes_a_file_once(tmp_path, monkeypatch):
    from selrel_deploy.cli import export as module

    hashed = []
    for user in ("artifact.export", "artifact.format", "kit.kit"):
        module_of = importlib.import_module(f"selrel_deploy.{user}")
        monkeypatch.setattr(module_of, "sha256_file", lambda path: hashed.append(Path(path).name) or sha256_file(path))
    monkeypatch.setattr(module, "installed", lambda: True)
    monkeypatch.setattr(module, "build", lambda artifact: Report("1.7", [], dict.fromkeys(artifact.parts, 1)))
    where = ["-o", str(tmp_path / "a.onnx"), "--lint", "--kit", str(tmp_path / "kit")]
    assert main(["export", *SMALL, "--method", "gradcam", *where]) == 0
    assert [hashed.count(name) for name in ("a.onnx", "a.golden.npz")] == [1, 1]
    # What is not hashed again is right all the same.
    for line in (tmp_path / "kit" / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        sha256, name = line.split("  ")
        assert sha256_file(tmp_path / "kit" / name) == sha256
    assert read_artifact(tmp_path / "kit" / "a.onnx").sha256 == read_artifact(tmp_path / "a.onnx").sha256


@pytest.mark.slow
def test_lint_says_what_is_refused(tmp_path, capsys, monkeypatch):
    from selrel_deploy.cli import export as module

    refusal = Refusal("a.onnx", "conv1/convolution", "Conv", "conv1", "UNSUPPORTED_NODE (checkConv: too large)")
    reports = [Report("1.7", [], {"explanation": 2_000_000}), Report("1.7", [refusal], {})]
    monkeypatch.setattr(module, "installed", lambda: True)
    monkeypatch.setattr(module, "build", lambda path: reports.pop(0))
    arguments = ["export", "-o", str(tmp_path / "a.onnx"), *SMALL, "--method", "gradcam", "--lint"]
    assert main(arguments) == 0
    assert "a.onnx: TensorRT-RTX 1.7 builds, a plan of 2.0 MB" in capsys.readouterr().out
    assert main([*arguments, "--json", str(tmp_path / "figures.json")]) == 1
    printed, said = capsys.readouterr()
    assert "TensorRT-RTX 1.7 refuses it" in printed
    assert "refused: a.onnx: Conv conv1/convolution (module conv1): UNSUPPORTED_NODE" in said
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["lint"]["refusals"][0]["module"] == "conv1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "a.pt"], "ends in .onnx"),
        (["-o", "a.forward.onnx"], "without .forward"),
        (["--method", "smoothgrad"], "cannot be compiled; these can: gradient"),
        (["--method", "dtt"], "did you mean 'dtd'"),
        (["--option", "pol=winner"], "no option 'pol'"),
        (["--precision", "fp8"], "no precision 'fp8'"),
        (["--precision", "bf16"], "no bf16"),
        (["--input", "uint8"], "needs --frame-size"),
        (["--frame-size", "20x20"], "goes with --input uint8"),
        (["--input", "uint8", "--frame-size", "20,20"], "as HxW"),
        (["--input", "uint8", "--frame-size", "0x20"], "as HxW"),
        (["--preset", "calibrated", "--n-sigma", "2"], "give --alpha"),
        (["--alpha", "0.01"], "goes with --preset calibrated"),
        (["--preset", "calibrated"], "calibrat"),
        (["--n-sigma", "-1"], "n_sigma"),
        (["--batch", "0"], "--batch"),
        (["--device", "cuda"], "--device"),
        (["--golden-clips", "missing.mp4"], "missing.mp4"),
        (["--json", "a.json"], "own description"),
        (["--json", ""], "--json is empty"),
        (["--lint"], "trt-lint"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    from selrel_deploy.cli import export as module

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "installed", lambda: False)
    assert main(["export", "-o", "a.onnx", *SMALL, *arguments]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert message in said
    assert not list(tmp_path.iterdir())


def test_frames_of_another_size_are_refused(tmp_path, capsys):
    folder = tmp_path / "frames"
    folder.mkdir()
    for step in range(16):
        write_png(folder / f"{step:02d}.png", np.full((10, 12, 3), step, np.uint8))
    arguments = ["--input", "uint8", "--frame-size", "20x24", "--golden-clips", str(folder)]
    assert main(["export", "-o", str(tmp_path / "a.onnx"), *SMALL, *arguments]) == 2
    assert "frames of 10x12 (height x width), --frame-size says 20x24" in capsys.readouterr().err


@pytest.mark.slow
def test_random_weights_are_doubted(tmp_path, capsys):
    arguments = ["--model", "networks:few_layers", "--weights", "random", "--seed", "3", "--method", "gradcam"]
    assert main(["export", "-o", str(tmp_path / "a.onnx"), *arguments]) == 0
    assert "warning: random weights" in capsys.readouterr().err
    assert read_artifact(tmp_path / "a.onnx").info["weights"] == "random seed 3"
