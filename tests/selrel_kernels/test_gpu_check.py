"""benchmarks/gpu_check.sh as far as it goes without a GPU: it says in one line what is missing, with exit code 2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu_check.sh"
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run the script itself")


def run(*options: str, path: str = os.defpath) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "PATH": path}
    return subprocess.run(["bash", str(SCRIPT), *options], env=environment, capture_output=True, text=True, check=False)


@WITHOUT_GPU
def test_it_stops_where_a_gpu_is_needed(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    path = os.defpath if nvcc is None else f"{Path(nvcc).parent}{os.pathsep}{os.defpath}"
    done = run("--out", str(tmp_path / "out"), path=path)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: everything from here on needs a CUDA device, and torch sees none\n"
    if nvcc:
        assert "select_motion_measure_f32" in (tmp_path / "out/build.txt").read_text(encoding="utf-8")
    else:
        assert "NVRTC alone builds the kernel" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fast",), "unknown option --fast"),
        (("--out",), "--out wants a folder"),
        (("--wheels", "."), "no wheels in ."),
    ],
)
def test_wrong_options(options: tuple[str, ...], message: str) -> None:
    done = run(*options)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@WITHOUT_GPU
def test_the_benchmark_needs_a_gpu() -> None:
    script = SCRIPT.with_name("kernel_gpu.py")
    done = subprocess.run([sys.executable, str(script), "--small"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: this benchmark needs a CUDA device, and torch sees none\n"
