"""`selrel bench` as a user calls it: the table, the JSON, the device without torch, what it refuses."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

import selrel_zennit as sr
from networks import small_c3d
from selrel_deploy import compile_explanation
from selrel_deploy.artifact import export
from selrel_deploy.bench import report, timing
from selrel_zennit.cli import main
from selrel_zennit.clips.video import write_mp4

SMALL = ["--model", "networks:small_c3d", "--weights", "own"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Warm up for four rounds, whatever the machine does, and leave torch's threads as they were."""
    monkeypatch.setattr(report, "warm_up", partial(timing.warm_up, least=0.0, most=0.0))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    model = small_c3d()
    graph = compile_explanation(sr.build_method("gradient", model), torch.zeros(1, *model.spec.shape))
    return export(graph, tmp_path_factory.mktemp("artifact") / "gradient.onnx")


def write_video(path):
    frames = np.full((40, 30, 40, 3), 90, np.uint8)
    for step in range(40):
        frames[step, 5:20, step % 25 : step % 25 + 12] = (255, 40, 0)
    write_mp4(path, frames, 20)


def test_bench_prints_a_table_and_writes_the_figures(tmp_path, capsys):
    write_video(tmp_path / "clip.mp4")
    out = tmp_path / "bench.json"
    command = ["bench", *SMALL, "--methods", "gradient", "--runners", "eager", "--clips", str(tmp_path / "clip.mp4")]
    assert main([*command, "--rounds", "3", "--threads", "1", "--budget", "60", "--json", str(out)]) == 0
    said = capsys.readouterr()
    assert "A clip fills in 533 ms" in said.out
    assert "1 real video" in said.out
    assert "holds" in said.out
    assert said.err == ""
    result = json.loads(out.read_text(encoding="utf-8"))
    assert [row["runner"] for row in result["rows"]] == ["zennit", "captum", "eager"]
    assert (result["budget"], result["rounds"], result["threads"]) == (60, 3, 1)
    assert all(row["budget"]["held"] for row in result["rows"])
    assert result["model"]["model"] == "networks:small_c3d"
    assert result["rows"][2]["parity"]["grade"] == "exact"


def test_standard_output_is_json_alone_and_warnings_go_elsewhere(artifact, capsys):
    assert main(["bench", "--artifact", str(artifact), "--runners", "onnxruntime", "--rounds", "2", "--json", "-"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["artifact"]["name"] == "gradient.onnx"
    assert "warning: 2 samples a row: p99 is close to the slowest of them" in said.err
    assert len(said.err.splitlines()) == len(result["warnings"])


WITHOUT_TORCH = """
import sys

HEAVY = {"torch", "torchvision", "zennit", "captum", "pytorch_grad_cam", "onnx", "onnxscript", "safetensors",
         "scipy", "matplotlib", "tqdm"}

class NoneOfThese:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoneOfThese())
assert not HEAVY & set(sys.modules)

from selrel_zennit.cli import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_device_without_torch_benchmarks_an_artifact(artifact, tmp_path):
    write_video(tmp_path / "clip.mp4")

    def bench(*arguments):
        command = [sys.executable, "-c", WITHOUT_TORCH, "bench", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    found = ["--artifact", str(artifact), "--clips", "clip.mp4", "--seconds", "0.5"]
    done = bench(*found, "--runners", "onnxruntime")
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stdout
    assert "exact" in done.stdout
    refused = bench("--rounds", "2")
    assert refused.returncode == 2
    assert refused.stderr.startswith("selrel: error: ")
    assert "which is not installed" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "dtx"], "no method named 'dtx'"),
        (["--runners", "tensorflow"], "no runner named 'tensorflow'"),
        (["--runners", "openvino", "--precisions", "bf16"], "openvino runner does not run bf16"),
        (["--runners", "tensorrt"], "tensorrt times no model here: export it, and time the file"),
        (["--precisions", ","], "--precisions is empty"),
        (["--runners", "all,eager"], "--runners: all stands alone"),
        (["--budget", "0"], "--budget must be a positive number of seconds, got 0"),
        (["--seconds", "nan"], "--seconds must be a positive number of seconds, got nan"),
        (["--rounds", "4", "--seconds", "2"], "give --rounds or --seconds, not both"),
        (["--rounds", "1"], "--rounds"),
        (["--clips", "nothing.mp4"], "nothing.mp4 does not exist"),
        (["--provider", "CPU"], "--provider goes with --artifact"),
        (["--runner-option", "tf32=true"], "--runner-option goes with --artifact"),
        (["--artifact", "nothing.onnx", "--runner-option", "tf32"], "--runner-option 'tf32': give KEY=VALUE"),
        (["--artifact", "nothing.onnx"], "nothing"),
        (["--artifact", "nothing.onnx", "--model", "c3d"], "--model does not go with --artifact"),
        (["--artifact", "nothing.onnx", "--methods", "dtd"], "--methods does not go with --artifact"),
        (["--json", "."], ". is a folder"),
        (["--batches", "1,2"], "--batches goes with --device cuda"),
        (["--device", "cuda", "--batches", "1,0"], "--batches must be whole numbers above 0 with commas between"),
        (["--device", "cuda", "--paced"], "--paced is for the processor"),
        (["--device", "cuda", "--methods", "occlusion"], "occlusion is no fixed computation"),
        (["--device", "cuda", "--runners", "openvino"], "no runner of a model on a GPU named 'openvino'"),
        (["--device", "cuda", "--runners", "inductor", "--precisions", "bf16+int8"], "no runner of inductor runs"),
        (["--device", "cuda:99"], "or leave out the device" if not torch.cuda.is_available() else "cuda:99"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert main(["bench", *SMALL[: 4 * ("--artifact" not in arguments)], *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1
