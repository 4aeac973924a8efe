"""The device path runs in an interpreter that has NumPy, OpenCV, PyAV and click, and nothing else.

Artifacts run there too, with ONNX Runtime beside them: no torch, no torchvision, no Zennit.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ONLY_LIGHT_MODULES = """
import sys

HAS = {"numpy", "cv2", "av", "click", "selrel_zennit", "selrel_kernels", "selrel_deploy"} | sys.stdlib_module_names
HAS |= ALSO

class NothingElse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in HAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NothingElse())
for name in ("torch", "torchvision", "zennit", "PIL", "matplotlib", "scipy", "tqdm", "onnx", "safetensors"):
    assert name not in sys.modules, name
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{name} can be imported: this test would prove nothing")
"""

USE = """
import av
import cv2
import numpy as np

import selrel_deploy
import selrel_kernels
import selrel_zennit as sr
from selrel_zennit import files
from selrel_zennit.outputs import report
from selrel_zennit.outputs.colormaps import palette
from selrel_zennit.outputs.painter import colour_scale, normalise
from selrel_zennit.outputs.render import overlay_frames, strip_image

for package in (selrel_deploy, selrel_kernels, sr):
    assert set(package.__all__) <= set(dir(package))

drawn = np.random.default_rng(0).integers(0, 256, (20, 120, 160, 3), np.uint8)
with av.open("clip.mp4", "w") as container:
    stream = container.add_stream("mpeg4", rate=25)
    stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
    for frame in drawn:
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())
frames = sr.read_frames("clip.mp4")
assert frames.shape == (20, 120, 160, 3) and frames.dtype == np.uint8
assert len(list(sr.iter_frames("clip.mp4"))) == 20
try:
    sr.read_frames("missing.mp4")
except sr.InputError as error:
    assert "missing.mp4" in str(error)

spec = sr.ClipSpec()
clip = spec.array(frames)
assert clip.shape == (1, 3, 16, 112, 112)
relevance = clip.sum(1)
mask = relevance > 0
explanation = sr.Explanation(
    np.zeros((1, 4), np.float32), np.zeros(1, np.int64), relevance, np.where(mask, relevance, 0), mask
)
share = explanation.motion_share()
maps = explanation.relevance[0], explanation.motion_relevance[0]
words = {"title": "t", "top5": [("a", 0.5)], "target_name": "a", "motion_share": (share.area[0], share.mass[0])}
pixels = spec.to_pixels(clip)[0]
assert len(overlay_frames(pixels, *maps, **words)) == 16
assert strip_image(pixels, *maps, **words).ndim == 3
assert normalise(relevance, scale=colour_scale(relevance)).max() <= 1
assert palette("coldnhot").dtype == np.uint8

from selrel_zennit.cli import main

assert main(["--help"]) == 0
assert main(["list", "methods"]) == 0
assert "torch" not in sys.modules
assert main(["explain", "clip.mp4"]) == 2
try:
    sr.load_model("demo")
except ModuleNotFoundError as error:
    print("left out:", error.name)
"""


# ONNX Runtime, and what it imports.
RUNTIME = ("onnxruntime", "flatbuffers", "packaging")

RUN = """
import contextlib
import io
import json
from pathlib import Path

import numpy as np

from selrel_zennit.cli import main
from selrel_zennit.clips.video import write_png

frame = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
Path("frames").mkdir()
for step in range(40):
    moved = frame.copy()
    moved[5:15, step : step + 9] = (255, 40, 0)
    write_png(Path("frames") / f"{step:03d}.png", moved)

for name in ("whole", "split"):
    assert main(["parity", f"{name}.onnx", "--json", "certificate.json"]) == 0
    assert json.loads(Path("certificate.json").read_text())["grade"] in ("exact", "faithful")
    when = ["--explain-when", "any:0"] if name == "split" else []
    assert main(["run", f"{name}.onnx", "frames", "--all-clips", "--out", name, *when]) == 0
    made = {path.name for path in Path(name).iterdir()}
    assert made == {"overlay.mp4", "strip.png", "report.html", "explanation.npz", "summary.json"}, made
    summary = json.loads((Path(name) / "summary.json").read_text())
    assert summary["runner"] == "onnxruntime"
    assert [clip["start"] for clip in summary["clips"]] == [0, 16]
    assert summary["clips"][0]["frozen_mass"] is not None

printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    assert main(["list", "runners", "--json", "-"]) == 0
installed = {row["name"]: row["installed"] for row in json.loads(printed.getvalue())}
assert (installed["onnxruntime"], installed["eager"]) == ("yes", "no"), installed
assert main(["parity", "whole.onnx", "--against", "zennit"]) == 2
for name in ("torch", "torchvision", "zennit"):
    assert name not in sys.modules, name
print("all done")
"""


def run_on_device(source: str, folder: Path, *also: str) -> subprocess.CompletedProcess[str]:
    light = ONLY_LIGHT_MODULES.replace("ALSO", repr(set(also)) if also else "set()")
    return subprocess.run(
        [sys.executable, "-c", light + source],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_device_path_needs_no_torch(tmp_path: Path) -> None:
    done = run_on_device(USE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "explain" in done.stdout
    assert "deep Taylor decomposition" in done.stdout
    assert "left out: torch" in done.stdout
    # One line, not a traceback, for a command that a device cannot run.
    assert done.stderr.startswith("selrel: error: selrel explain needs ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_artifacts_run_and_are_certified_without_torch(tmp_path: Path) -> None:
    import torch

    import selrel_zennit as sr
    from networks import small_c3d
    from selrel_deploy import compile_explanation
    from selrel_deploy.artifact import export

    model = small_c3d()
    graph = compile_explanation(sr.build_method("dtd", model), torch.zeros(1, *model.spec.shape))
    info = {"clip_spec": model.spec.to_dict()}
    export(graph, tmp_path / "whole.onnx", info=info)
    export(graph, tmp_path / "split.onnx", info=info, split=True)
    done = run_on_device(RUN, tmp_path, *RUNTIME)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "all done"
    assert "selrel: error: --against zennit needs" in done.stderr


def test_a_heavy_import_is_found(tmp_path: Path) -> None:
    done = run_on_device("from selrel_zennit.attribution import build_method", tmp_path)
    assert done.returncode != 0
    assert "No module named 'torch'" in done.stderr
