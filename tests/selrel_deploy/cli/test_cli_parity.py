"""`selrel parity` as a user calls it: a table, JSON, and an exit code that can be relied on."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import save_file

import selrel_zennit as sr
from helpers import slow_but
from networks import small_c3d
from selrel_deploy import compile_explanation
from selrel_deploy.artifact import export
from selrel_deploy.runners.onnxruntime import OnnxRuntimeRunner
from selrel_zennit.cli import main
from selrel_zennit.clips.video import write_png

from ..conftest import FRAME_SIZE, NAMES


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    folder = tmp_path_factory.mktemp("video") / "frames"
    folder.mkdir()
    frame = np.random.default_rng(0).integers(0, 256, (*FRAME_SIZE, 3), dtype=np.uint8)
    for step in range(48):
        moved = frame.copy()
        moved[8:20, step % 16 : step % 16 + 9] = (255, 5 * step, 0)
        write_png(folder / f"{step:03d}.png", moved)
    return str(folder)


@pytest.mark.parametrize("kind", slow_but(["whole", "split", "uint8"], "whole"))
def test_golden_cases(artifacts, kind, capsys, tmp_path):
    assert main(["parity", str(artifacts[kind]), "--json", str(tmp_path / "a.json"), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["grade"] == "exact"
    assert figures["against"] == "golden"
    assert figures["runner"]["provider"] == "CPUExecutionProvider"
    assert len({row["clip"] for row in figures["comparisons"]}) == 3
    for word in (
        "Spearman",
        "relevance",
        "logits",
        "same top class",
        "mask IoU",
        "exact: relevance differs by at most",
    ):
        assert word in printed
    assert len(printed.splitlines()) > len(figures["comparisons"])


@pytest.mark.parametrize("kind", slow_but(["whole", "uint8"], "whole"))
def test_zennit_on_synthetic_clips_and_on_a_video(artifacts, kind, video, capsys):
    for arguments, name in (([], "synthetic"), (["--clips", video], "frame 32")):
        assert main(["parity", str(artifacts[kind]), "--against", "zennit", *arguments, "--json", "-"]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert figures["grade"] in ("exact", "faithful")
        assert len(figures["clips"]) == 3
        assert name in figures["clips"][2]


def test_a_fault_is_exit_code_1(artifacts, monkeypatch, capsys):
    honest = OnnxRuntimeRunner.run

    def fault(self, clip, target):
        outputs = honest(self, clip, target)
        return [outputs[0], outputs[1], *(value * 2 for value in outputs[2:4]), outputs[4]]

    monkeypatch.setattr(OnnxRuntimeRunner, "run", fault)
    assert main(["parity", str(artifacts["whole"])]) == 1
    captured = capsys.readouterr()
    assert "the map is the reference's times 2.0000" in captured.out
    assert captured.err.startswith("selrel: check failed: clip 0")
    assert captured.err.count("\n") == 1


@pytest.mark.slow
def test_the_weights_must_be_those_of_the_artifact(tmp_path, capsys):
    save_file(small_c3d(seed=1).state_dict(), tmp_path / "one.safetensors")
    save_file(small_c3d(seed=2).state_dict(), tmp_path / "two.safetensors")
    model = sr.load_model("networks:small_c3d", tmp_path / "one.safetensors")
    graph = compile_explanation(
        sr.build_method("gradient", model), model.spec.clip(np.zeros((16, 16, 16, 3), np.uint8))
    )
    path = str(export(graph, tmp_path / "one.onnx"))
    assert main(["parity", path, "--against", "zennit"]) in (0, 1)
    capsys.readouterr()
    shutil.move(tmp_path / "one.safetensors", tmp_path / "moved.safetensors")
    for weights, word in (([], "--weights"), (["--weights", str(tmp_path / "two.safetensors")], "hash differs")):
        assert main(["parity", path, "--against", "zennit", *weights]) == 2
        assert word in capsys.readouterr().err
    moved = ["--weights", str(tmp_path / "moved.safetensors")]
    assert main(["parity", path, "--against", "zennit", *moved]) in (0, 1)


def test_bad_input_is_one_line(artifacts, video, tmp_path, capsys):
    (tmp_path / "still").mkdir()
    for step in range(48):
        write_png(tmp_path / "still" / f"{step}.png", np.full((*FRAME_SIZE, 3), 90, np.uint8))
    good = str(artifacts["whole"])
    for arguments, word in (
        ([str(tmp_path / "missing.onnx")], "does not exist"),
        ([good, "--clips", video], "--against zennit"),
        ([good, "--runner", "onnxrutime"], "'onnxruntime'"),
        ([good, "--provider", "CUDAExecutionProvider"], "CUDAExecutionProvider"),
        ([good, "--against", "zennit", "--clips", str(tmp_path / "still")], "clip 0 does not move"),
        ([good, "--against", "zennit", "--clips", str(tmp_path / "gone.mp4")], "gone.mp4"),
        ([good, "--json", str(tmp_path)], "is a folder"),
    ):
        assert main(["parity", *arguments]) == 2, arguments
        captured = capsys.readouterr()
        assert captured.err.startswith("selrel: error: "), captured.err
        assert captured.err.count("\n") == 1
        assert word in captured.err, captured.err


def test_list_runners(capsys):
    assert main(["list", "runners", "--json", "-"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"eager", "onnxruntime", "openvino"} <= set(rows)
    assert rows["onnxruntime"]["installed"] == "yes"
    assert "fp32" in rows["onnxruntime"]["precisions"]
    assert "bf16" not in rows["onnxruntime"]["precisions"]
    assert main(["list", "runners"]) == 0
    assert "fp32+int8" in capsys.readouterr().out
    assert len(NAMES) == 5
