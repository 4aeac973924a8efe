"""The edge kit, used as far as a machine without a GPU can: every file, every command in it."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from packaging.requirements import Requirement
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

import selrel_zennit as sr
from selrel_deploy import read_artifact
from selrel_deploy.kit.kit import write_kit
from selrel_zennit.cli import main
from selrel_zennit.clips.video import write_png

SMALL = ["--model", "networks:few_layers", "--weights", "own", "--method", "lrp_epsilon_plus"]

# A stand-in that takes what trtexec would: it knows the options of TensorRT's releases, and reads what it is given.
TRTEXEC = """#!/usr/bin/env python3
import sys
from pathlib import Path
KNOWN = {"onnx", "saveEngine", "timingCacheFile", "loadInputs", "exportTimes", "noTF32", "useCudaGraph", "useSpinWait",
         "warmUp", "duration", "percentile", STRONGLY}
if sys.argv[1:] == ["--help"]:
    print(*(f"--{name}" for name in KNOWN))
    sys.exit()
options = dict(argument.removeprefix("--").partition("=")[::2] for argument in sys.argv[1:])
assert set(options) <= KNOWN, set(options) - KNOWN
assert Path(options["onnx"]).is_file()
sizes = [f"{name}={Path(file).stat().st_size}" for name, file in
         (pair.split(":") for pair in options["loadInputs"].split(","))]
print(options["onnx"], options["saveEngine"], *sizes, "strong" if "stronglyTyped" in options else "")
"""


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    """A whole artifact of a batch of two and a split one that takes frames, each with its kit, by the command line."""
    folder = tmp_path_factory.mktemp("kits")
    for name, more in (
        ("whole", ["--batch", "2"]),
        ("split", ["--split", "--input", "uint8", "--frame-size", "20x24"]),
    ):
        arguments = ["export", *SMALL, *more, "-o", str(folder / f"{name}.onnx"), "--kit", str(folder / name)]
        assert main(arguments) == 0
    return folder


@pytest.fixture
def video(tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    ground = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    for step in range(16):
        picture = ground.copy()
        picture[4:9, step : step + 5] = (255, 40, 0)
        write_png(frames / f"{step:02d}.png", picture)
    return frames


def test_every_file_is_there_unchanged_and_named(kits):
    for name in ("whole", "split"):
        kit, artifact = kits / name, read_artifact(kits / f"{name}.onnx")
        assert read_artifact(kit / f"{name}.onnx").sha256 == artifact.sha256
        done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=kit, capture_output=True, text=True, check=True)
        files = {path.relative_to(kit).as_posix() for path in kit.rglob("*") if path.is_file()}
        assert {line.split(":")[0] for line in done.stdout.splitlines()} == files - {"SHA256SUMS"}
        readme = (kit / "README.md").read_text("utf-8")
        said = {
            part for row in re.findall(r"^\| (\S.*?) \|", readme.split("## Files")[1], re.M) for part in row.split(", ")
        }
        tops = {file.split("/")[0] + ("/" if "/" in file else "") for file in files} - {"README.md"}
        assert said - {"file", "---"} == tops
        for path in kit.rglob("*"):
            if path.suffix in (".md", ".py", ".sh", ".txt", ".pbtxt"):
                assert not re.search(r"@[A-Z_]+@", path.read_text("utf-8")), path


DEVICE = """
import runpy
import sys

ALLOWED = set(sys.argv[1].split(",")) | {"selrel_zennit", "selrel_kernels", "selrel_deploy"} | sys.stdlib_module_names

class NothingElse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NothingElse())
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def modules_of(requirements: Path) -> set[str]:
    """Return the top-level modules of what a requirements file names, and of what that requires."""
    waiting = [Requirement(line) for line in requirements.read_text("utf-8").splitlines() if line[:1] not in ("", "#")]
    assert all(one.specifier.contains(importlib.metadata.version(one.name)) for one in waiting)
    names, modules = set(), set()
    while waiting:
        name = waiting.pop().name
        if name not in names:
            names.add(name)
            found = importlib.metadata.distribution(name)
            modules |= {
                str(file).split("/")[0].split(".")[0] for file in found.files if str(file).endswith((".py", ".so"))
            }
            more = map(Requirement, found.requires or [])
            waiting += [one for one in more if one.marker is None or one.marker.evaluate({"extra": ""})]
    return modules


def run_script(kit, *arguments):
    allowed = modules_of(kit / "requirements-edge.txt")
    assert not {"torch", "torchvision", "zennit", "onnx"} & allowed
    command = [sys.executable, "-c", DEVICE, ",".join(sorted(allowed)), str(kit / "run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["whole", "split"])
def test_the_script_runs_with_what_a_device_installs(kits, video, name):
    done = run_script(kits / name, video)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("OnnxRuntimeRunner(CPUExecutionProvider")
    assert lines[1] == "golden cases: exact"
    assert re.fullmatch(r"class: \d", lines[2])
    assert re.fullmatch(r"motion: [\d.]+% of the relevance, on [\d.]+% of the voxels that have any", lines[3])


@pytest.mark.slow
def test_the_script_stops_where_the_explanation_is_another(kits, tmp_path):
    kit = tmp_path / "kit"
    shutil.copytree(kits / "whole", kit)
    source = (kit / "run.py").read_text("utf-8")
    wrong = "        run.run = lambda clip, target, run=run.run: [run(clip, target)[0] * 0, *run(clip, target)[1:]]\n"
    (kit / "run.py").write_text(
        source.replace("        artifact = run.artifact\n", wrong + "        artifact = run.artifact\n")
    )
    done = run_script(kit)
    assert done.returncode == 1
    assert "golden cases: failed" in done.stdout


def test_what_cannot_run_is_one_sentence(kits, tmp_path):
    for arguments, word in (
        ([tmp_path / "gone.mp4"], "gone.mp4 does not exist"),
        (["--runner", "tensorrt"], "needs tensorrt, which is not installed: pip install tensorrt cuda-core"),
        (["--runner", "nothing"], "no runner named 'nothing'"),
        (["--runner", "eager"], "needs torch, which is not installed"),
    ):
        done = run_script(kits / "whole", *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("run.py: error: ")
        assert done.stderr.count("\n") == 1
        assert word in done.stderr


def test_a_kit_in_half_precision_says_that_it_needs_a_gpu(kits, tmp_path):
    kit = tmp_path / "kit"
    half = ["--precision", "fp32+fp16", "-o", str(tmp_path / "half.onnx"), "--kit", str(kit)]
    assert main(["export", *SMALL, *half]) == 0
    readme, plain = ((folder / "README.md").read_text("utf-8") for folder in (kit, kits / "whole"))
    assert "Without a GPU" in plain
    assert "Without a GPU" not in readme
    assert "needs a GPU: it computes in fp32+fp16, and no runtime for processors does" in " ".join(readme.split())
    # What the section for processors has in it, and what it leaves to the one for TensorRT.
    assert "selrel bench" in plain
    assert "selrel bench" not in readme
    assert "pip install -r requirements-edge.txt" in readme
    assert "@" not in readme.replace("-r requirements", "")
    script, plain_script = ((folder / "run.py").read_text("utf-8") for folder in (kit, kits / "whole"))
    assert 'default="tensorrt", help="tensorrt"' in script
    assert 'default="onnxruntime", help="onnxruntime, openvino or tensorrt"' in plain_script
    # The claim is so: there is a refusal, and it is a sentence.
    done = run_script(kit, "--runner", "onnxruntime")
    assert done.returncode == 2
    assert "does not run fp32+fp16" in done.stderr


def test_a_kit_that_cannot_be_written_leaves_no_artifact(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["export", *SMALL, "-o", str(tmp_path / "x.onnx"), "--kit", str(tmp_path / "file" / "kit")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_requirements_are_those_of_the_package(kits):
    """A bound that the package has and the device lacks would go unnoticed until a call fails."""
    package = {
        (one := Requirement(line)).name: str(one.specifier) for line in importlib.metadata.requires("selrel-zennit")
    }
    for line in (kits / "whole" / "requirements-edge.txt").read_text("utf-8").splitlines():
        if line[:1] not in ("", "#"):
            assert str(Requirement(line).specifier) == package[Requirement(line).name]


@pytest.mark.parametrize("strongly", [True, False])
def test_trtexec_gets_options_and_inputs_that_fit(kits, tmp_path, strongly):
    stand_in = tmp_path / "trtexec"
    stand_in.write_text(TRTEXEC.replace("STRONGLY", '"stronglyTyped"' if strongly else '"onnx"'))
    stand_in.chmod(0o755)

    def engine(name):
        command = [str(kits / name / "engine.sh")]
        env = {**os.environ, "TRTEXEC": str(stand_in)}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()

    strong = ["strong"] if strongly else []
    clip, frames = (int(np.prod(read_artifact(kits / f"{name}.onnx").input_shape)) for name in ("whole", "split"))
    assert [line.split() for line in engine("whole")] == [
        ["whole.onnx", "whole.plan", f"clip={4 * clip}", "target=16", *strong]
    ]
    # What only the forward part knows is left to trtexec to make up.
    first, second = (line.split() for line in engine("split"))
    assert first[:3] == ["split.forward.onnx", "split.forward.plan", f"frames={frames}"]
    assert second[:2] == ["split.explain.onnx", "split.explain.plan"]
    assert "target=8" in second


def test_the_golden_files_are_the_first_case(kits):
    golden = read_artifact(kits / "whole.onnx").golden()
    for name in ("clip", "target"):
        raw = np.fromfile(kits / "whole" / "golden" / f"{name}.bin", golden[name].dtype)
        assert np.array_equal(raw, golden[name][0].ravel())


@pytest.mark.slow
def test_polygraphy_takes_its_script(kits, tmp_path):
    """With ONNX Runtime in both places: the same comparison, and a limit that is missed fails."""
    kit = tmp_path / "kit"
    shutil.copytree(kits / "whole", kit)
    bin = str(Path(sys.executable).parent)
    env = {**os.environ, "RUNNERS": "--onnxrt --onnxrt", "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"}

    def compare():
        return subprocess.run([str(kit / "compare.sh")], env=env, capture_output=True, text=True, check=False)

    done = compare()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("relevance: 0.00e+00 of the norm, limit 1e-02") == len(
        read_artifact(kits / "whole.onnx").golden()["target"]
    )
    golden = (kit / "golden.py").read_text("utf-8")
    (kit / "golden.py").write_text(golden.replace('"relevance": 0.01', '"relevance": -1'))
    assert compare().returncode != 0


@pytest.mark.parametrize(("name", "parts"), [("whole", ["whole"]), ("split", ["split_forward", "split_explain"])])
def test_triton_configurations_fit_their_graphs(kits, name, parts):
    repository, artifact = kits / name / "triton", read_artifact(kits / f"{name}.onnx")
    assert sorted(path.name for path in repository.iterdir()) == sorted(parts)
    types = {"TYPE_FP32": onnx.TensorProto.FLOAT, "TYPE_INT64": onnx.TensorProto.INT64,
             "TYPE_UINT8": onnx.TensorProto.UINT8, "TYPE_BOOL": onnx.TensorProto.BOOL}  # fmt: skip
    sizes = {"TYPE_FP32": 4, "TYPE_INT64": 8, "TYPE_UINT8": 1}
    for part in parts:
        config = text_format.Parse((repository / part / "config.pbtxt").read_text("utf-8"), ModelConfig())
        assert (config.name, config.backend, config.max_batch_size) == (part, "onnxruntime", 0)
        path = repository / part / "1" / "model.onnx"
        # With the weights beside it: the graph can be loaded where it lies.
        onnx.checker.check_model(path)
        graph = onnx.load(path).graph
        for said, real in ((config.input, graph.input), (config.output, graph.output)):
            assert [one.name for one in said] == [one.name for one in real]
            for one, other in zip(said, real, strict=True):
                kind = other.type.tensor_type
                assert types[DataType.Name(one.data_type)] == kind.elem_type
                assert list(one.dims) == [axis.dim_value for axis in kind.shape.dim]
        (warm,) = config.model_warmup
        assert warm.batch_size == 1
        assert set(warm.inputs) == {one.name for one in config.input}
        for tensor, value in warm.inputs.items():
            if value.WhichOneof("input_data_type") == "input_data_file":
                size = (repository / part / "warmup" / value.input_data_file).stat().st_size
                assert size == np.prod(value.dims) * sizes[DataType.Name(value.data_type)]
            else:
                # What the forward part hands over, nobody has to show.
                assert value.zero_data
                assert tensor in (*artifact.activations, "logits")


def test_bad_input(kits, tmp_path):
    artifact = kits / "whole.onnx"
    with pytest.raises(sr.InputError, match="holds the artifact itself: give a folder of its own"):
        write_kit(artifact, kits)
    with pytest.raises(sr.InputError, match="holds the kit of another artifact"):
        write_kit(artifact, kits / "split")
    with pytest.raises(sr.InputError, match="does not exist"):
        write_kit(tmp_path / "none.onnx", tmp_path / "kit")
    damaged = tmp_path / "whole.onnx"
    for suffix in (".onnx", ".json", ".golden.npz"):
        shutil.copyfile(artifact.with_suffix(suffix), damaged.with_suffix(suffix))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(sr.InputError, match="its hash differs"):
        write_kit(damaged, tmp_path / "kit")
    assert not (tmp_path / "kit").exists()


def test_a_second_kit_replaces_the_first(kits, tmp_path):
    for _ in range(2):
        write_kit(kits / "whole.onnx", tmp_path / "kit")
    manifest = json.loads((tmp_path / "kit" / "whole.json").read_text("utf-8"))
    assert manifest["name"] == "whole"
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
