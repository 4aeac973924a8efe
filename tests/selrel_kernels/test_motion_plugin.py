"""The TensorRT plugin, built for this machine's processor and driven with the calls that TensorRT makes.

No TensorRT has run it on a GPU. What is held here against the definition is everything that the plugin adds to the
kernels: fields, shapes, types, workspace, launches, errors. ``host/tensorrt/NvInferRuntime.h`` stands in for TensorRT's
header and ``host/cuda/cuda_runtime.h`` for CUDA's. Where TensorRT-RTX is installed, it loads the library that nvcc
builds and takes a graph with the plugin through its parser and builder: ``test_trt_plugin.py``.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from kernel_cases import HOST, SETTINGS, Case, random_case
from selrel_kernels import plan, plugin
from selrel_kernels.build import main

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++ with AddressSanitizer")

SOURCE = plugin.SOURCE
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 7, torch.int8: 2}
STAGES = ("", "create", "types and shapes", "formats", "configure", "load", "shape change", "enqueue")
RANDOM_CASES = 60


def build(folder: Path, source: Path = SOURCE) -> Path:
    program = folder / "run_plugin"
    command = ["g++", "-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-fsanitize=address,undefined"]
    command += ["-fno-sanitize-recover=undefined", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += ["-Wno-clobbered", f'-DSOURCE="{source}"', f"-I{SOURCE.parent}", f"-I{HOST / 'cuda'}"]
    command += [f"-I{HOST / 'tensorrt'}", str(HOST / "run_plugin.cpp"), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("plugin"))


@dataclasses.dataclass
class Given:
    """A case with what TensorRT says of it. ``fields`` are lines name:type=value, in place of the case's settings."""

    case: Case
    fields: str | None = None
    multiprocessors: int = 2
    shared_memory: int = 99 * 1024

    @property
    def text(self) -> str:
        if self.fields is not None:
            return self.fields
        settings = "".join(f"{name}:char={value}\n" for name, value in self.case.settings.items())
        return f"n_sigma:float={self.case.n_sigma!r}\n{settings}"


@dataclasses.dataclass
class Result:
    refused: str
    said: str
    motion: torch.Tensor
    mask: torch.Tensor


def run(program: Path, cases: Sequence[Given], folder: Path) -> list[Result]:
    given, results = folder / "cases", folder / "results"
    with given.open("wb") as file:
        for index, one in enumerate(cases):
            relevance, text = one.case.relevance.contiguous(), one.text.encode()
            shape = [*relevance.shape, *[0] * 5][:5]
            limits = np.asarray(one.case.thresholds or (), np.float32)
            header = [
                TYPES[relevance.dtype],
                relevance.ndim,
                *shape,
                len(limits),
                one.multiprocessors,
                one.shared_memory,
                97 * (index % 2),  # of every other case, clips of another shape that is announced
            ]
            file.write(struct.pack("12q", *header, len(text)) + text)
            file.write(relevance.view(torch.uint8).numpy().tobytes() + limits.tobytes())
    done = subprocess.run([program, given, results], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    said = re.findall(r"^case (\d+): (.*)$", done.stdout, re.MULTILINE)
    content, at, made = results.read_bytes(), 0, []
    for index, one in enumerate(cases):
        relevance = one.case.relevance
        (stage,) = struct.unpack_from("q", content, at)
        at += 8
        motion, mask = torch.empty(0), torch.empty(0)
        if stage == 0:
            size, voxels = relevance.numel() * relevance.element_size(), relevance.numel() // channels(relevance)
            motion = torch.frombuffer(bytearray(content[at : at + size]), dtype=relevance.dtype).view(relevance.shape)
            mask = torch.frombuffer(bytearray(content[at + size : at + size + 4 * voxels]), dtype=torch.int32)
            mask = mask.view(relevance.shape[0], *relevance.shape[-3:])
            at += size + 4 * voxels
        # What enqueue() says when the driver calls it too early is not of the case.
        lines = [text for of, text in said if int(of) == index and "enqueue() was " not in text]
        made.append(Result(STAGES[stage], "\n".join(lines), motion, mask))
    assert at == len(content)
    return made


def channels(relevance: torch.Tensor) -> int:
    return relevance.shape[1] if relevance.ndim == 5 else 1


def check(given: Given, result: Result) -> int:
    assert (result.refused, result.said) == ("", "")
    assert set(result.mask.unique().tolist()) <= {0, 1}
    return given.case.check(result.motion, result.mask.bool(), what=str(given.text))


def test_random_selections(program: Path, tmp_path: Path) -> None:
    """All types, settings, ranks and sizes of devices; calibrated thresholds too, which come as an input."""
    rng = np.random.default_rng(0)
    cases = []
    for seed in range(1000, 1000 + RANDOM_CASES):
        case = random_case(seed)
        case.relevance = case.relevance.contiguous()
        shared = int(rng.choice([48, 99, 163, 227])) * 1024
        cases.append(Given(case, multiprocessors=int(rng.integers(1, 150)), shared_memory=shared))
    assert {one.case.relevance.dtype for one in cases} == {torch.float32, torch.float16, torch.bfloat16}
    assert {one.case.relevance.ndim for one in cases} == {4, 5}
    assert any(one.case.thresholds for one in cases)
    assert len({one.case.flags for one in cases}) > 12
    results = run(program, cases, tmp_path)
    assert sum(check(given, result) for given, result in zip(cases, results, strict=True)) <= 2
    assert sum(bool(result.mask.any()) for result in results) > RANDOM_CASES / 3


def test_a_map_of_many_tiles_and_more_than_48_kib(program: Path, tmp_path: Path) -> None:
    relevance = torch.randn(2, 3, 16, 70, 90, generator=torch.Generator().manual_seed(0))
    given = Given(Case(relevance, 2.0), shared_memory=163 * 1024)
    assert plan.plan_launches((2, 3, 16, 70, 90), plan.Limits(2, 163 * 1024, 80)).shared_bytes > 48 * 1024
    (result,) = run(program, [given], tmp_path)
    assert check(given, result) <= 2
    assert result.mask.any()


def test_fields_that_are_left_out_have_the_defaults(program: Path, tmp_path: Path) -> None:
    relevance = torch.randn(1, 3, 6, 9, 11, generator=torch.Generator().manual_seed(1))
    relevance[:, :, 3, 4, 5] = 40.0
    (result,) = run(program, [Given(Case(relevance, 4.0), fields="")], tmp_path)
    assert check(Given(Case(relevance, 4.0)), result) == 0
    assert result.mask.any()


FINE = torch.zeros(1, 3, 4, 5, 6)
REFUSED = [
    (Given(Case(FINE), fields="n_sgima:float=2\n"), "create", "no field 'n_sgima'; there are n_sigma, sign, sigma"),
    (Given(Case(FINE), fields="n_sigma:char=2\n"), "create", "n_sigma must be one float32"),
    (Given(Case(FINE), fields="n_sigma:int=2\n"), "create", "n_sigma must be one float32"),
    (Given(Case(FINE), fields="n_sigma:float=-1\n"), "create", "n_sigma must be finite and 0 or more, got -1"),
    (Given(Case(FINE), fields="n_sigma:float=nan\n"), "create", "n_sigma must be finite and 0 or more, got"),
    (Given(Case(FINE), fields="sign:char=up\n"), "create", "sign cannot be 'up'"),
    (Given(Case(FINE), fields="sign:char=risingly\n"), "create", "sign cannot be 'risingly'"),
    (Given(Case(FINE), fields="border:int=1\n"), "create", "border cannot be ''"),
    (Given(Case(FINE[0, 0])), "types and shapes", r"relevance must be \[B,C,T,H,W\] or \[B,T,H,W\], got 3 axes"),
    (Given(Case(FINE.to(torch.int8))), "formats", ""),
    (Given(Case(FINE[:, :, :1])), "configure", "relevance must have at least 2 time steps .*, got 1"),
    (Given(Case(FINE[:, :, :0])), "configure", "relevance must have at least 2 time steps .*, got 0"),
    (Given(Case(FINE[:0])), "configure", "relevance must hold at least one voxel on every axis"),
    (Given(Case(FINE, thresholds=(0.1,) * 3)), "configure", "thresholds must be one per time step, 4"),
    (
        Given(Case(FINE, settings={**Case(FINE).settings, "sign": "rising"}, thresholds=(0.1,) * 4)),
        "types and shapes",
        "calibrated thresholds go with the default settings alone",
    ),
    (Given(Case(FINE), multiprocessors=0), "shape change", "no device: there is no device"),
    (Given(Case(FINE), shared_memory=8 * 1024), "shape change", "too little shared memory: 8192 bytes"),
]


def test_what_is_refused_is_said(program: Path, tmp_path: Path) -> None:
    results = run(program, [given for given, *_ in REFUSED], tmp_path)
    for (given, stage, message), result in zip(REFUSED, results, strict=True):
        assert result.refused == stage, (given, result)
        assert re.match(rf"SelectMotion: .*{message}|$", result.said), (given, result)
        assert bool(result.said) == bool(message), (given, result)


def test_launches_are_those_of_plan_py(program: Path) -> None:
    rng = np.random.default_rng(2)
    shapes = [(1, 3, 16, 112, 112), (8, 3, 16, 112, 112), (512, 3, 16, 112, 112), (1, 1, 2, 1, 1), (3, 2, 40, 7, 500)]
    shapes += [tuple(int(2 ** rng.uniform(1, top)) for top in (5, 3, 7, 9, 9)) for _ in range(200)]
    limits = [plan.Limits(int(rng.integers(1, 160)), int(rng.integers(48, 228)) * 1024, 90) for _ in shapes]
    lines = [" ".join(map(str, (*shape, *limit[:2]))) for shape, limit in zip(shapes, limits, strict=True)]
    done = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line, shape, limit in zip(done.stdout.splitlines(), shapes, limits, strict=True):
        expected = plan.plan_launches(shape, limit)
        figures = (*expected.tile, expected.groups, expected.grid, expected.threads, expected.shared_bytes)
        assert tuple(map(int, line.split())) == figures, (shape, limit)


def test_names_are_those_of_the_reference() -> None:
    text = SOURCE.with_suffix(".cuh").read_text(encoding="utf-8")
    arrays = re.findall(r"constexpr const char\* k\w+\[\] = \{(.*?)\};", text)
    assert [tuple(re.findall(r'"(.*?)"', values)) for values in arrays] == list(SETTINGS.values())


def test_the_plugin_is_left_out_where_its_headers_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plugin, "_SYSTEM", ())
    monkeypatch.delenv("TENSORRT_ROOT", raising=False)
    monkeypatch.delenv("CPATH", raising=False)
    assert main(["--plugin", "--out", str(tmp_path)]) == 2
    assert main(["--plugin", "--tensorrt", str(tmp_path), "--out", str(tmp_path)]) == 2
    header = tmp_path / "include" / plugin.HEADER
    header.parent.mkdir()
    header.write_text("class IPluginV2DynamicExt;\n", encoding="utf-8")
    assert main(["--plugin", "--tensorrt", str(tmp_path), "--out", str(tmp_path)]) == 2
    first, second, third = capsys.readouterr().out.splitlines()
    for line in (first, second, third):
        assert line.startswith("the TensorRT plugin is left out: ")
    assert "NvInferRuntime.h is not in TENSORRT_ROOT, CPATH" in first
    assert f"is not below {tmp_path}" in second
    assert "older than TensorRT 10" in third
    assert not list(tmp_path.glob("*.so"))


def test_headers_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = HOST / "tensorrt"
    assert plugin.find_headers(folder) == folder
    below = tmp_path / "include"
    shutil.copytree(folder, below)
    assert plugin.find_headers(tmp_path) == below
    monkeypatch.setenv("CPATH", f"{tmp_path / 'none'}:{folder}")
    monkeypatch.delenv("TENSORRT_ROOT", raising=False)
    assert plugin.find_headers() == folder
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    assert plugin.find_headers() == below
    assert main(["--plugin", "--out", str(tmp_path), "--nvcc", "nvcc-that-is-not-there"]) == 1
    assert "nvcc-that-is-not-there is missing" in capsys.readouterr().out


def test_a_planted_fault_is_caught(tmp_path: Path) -> None:
    """A setting that an engine does not keep."""
    text = SOURCE.read_text(encoding="utf-8")
    assert text.count("settings_.chosen[i]]") == 1
    source = tmp_path / "planted.cu"
    source.write_text(text.replace("settings_.chosen[i]]", "0]"), encoding="utf-8")
    cases = [Given(Case(random_case(seed, dtype=torch.float32).relevance.contiguous())) for seed in range(4)]
    for one in cases:
        one.case.settings = {**one.case.settings, "sign": "rising", "border": "zero"}
    results = run(build(tmp_path, source), cases, tmp_path)
    with pytest.raises(AssertionError, match="voxels differ"):
        sum(check(one, result) for one, result in zip(cases, results, strict=True))
