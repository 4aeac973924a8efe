"""The kernel compiles for every listed architecture, without spills, with the registers on record; and is cached."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from helpers import slow_but
from selrel_kernels import build, cubins
from selrel_kernels.plan import CLUSTER_ARCH, MAX_THREADS, SUFFIXES, KernelUnavailable

RECORD = Path(__file__).parents[2] / "benchmarks/results/kernel_resources.json"
REGISTERS = 65536 // (2 * MAX_THREADS)  # two blocks on a multiprocessor


def expected_kernels(arch: int) -> set[str]:
    stages = ("measure", "apply", "cluster") if arch >= CLUSTER_ARCH else ("measure", "apply")
    return {f"select_motion_{stage}_{suffix}" for stage in stages for suffix in SUFFIXES.values()}


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc, the compiler of the CUDA toolkit")
@pytest.mark.parametrize("arch", slow_but(build.ARCHITECTURES, 90))
def test_no_kernel_spills(tmp_path: Path, arch: int) -> None:
    source = tmp_path / "select_motion.cu"
    source.write_text(cubins.source(), encoding="utf-8")
    code, used = build.compile_with_nvcc(source, arch)
    assert code.startswith(b"\x7fELF")
    assert set(used) == expected_kernels(arch)
    for name, taken in used.items():
        assert taken["stack"] == taken["stores"] == taken["loads"] == 0, name
        assert taken["registers"] <= REGISTERS, name
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    if ".".join(map(str, build.nvcc_version())) == record["nvcc"]:
        assert used == record["kernels"][f"sm_{arch}"], f"python -m selrel_kernels.build --record {RECORD.name}"


def test_what_is_on_record() -> None:
    written = json.loads(RECORD.read_text(encoding="utf-8"))
    # A record of another source says nothing, and without nvcc nothing else would tell.
    source = cubins.source().encode()
    assert written["source_sha256"] == hashlib.sha256(source).hexdigest(), "python -m selrel_kernels.build --record"
    record = written["kernels"]
    assert {name: set(kernels) for name, kernels in record.items()} == {
        f"sm_{arch}": expected_kernels(arch) for arch in build.ARCHITECTURES
    }


def test_a_spill_is_read_from_the_report() -> None:
    report = (
        "ptxas info    : Compiling entry function 'k_f32' for 'sm_90'\n"
        "ptxas info    : Function properties for k_f32\n"
        "    24 bytes stack frame, 20 bytes spill stores, 36 bytes spill loads\n"
        "ptxas info    : Used 64 registers, used 1 barriers, 24 bytes cumulative stack size\n"
    )
    assert build.resources(report) == {"k_f32": {"registers": 64, "stack": 24, "stores": 20, "loads": 36}}


def test_build_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--out", str(tmp_path), "--nvcc", "nvcc-that-is-not-there"]) == 1
    assert "nvcc-that-is-not-there is missing" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc, the compiler of the CUDA toolkit")
def test_build_ships_what_the_launcher_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubins, "SHIPPED", tmp_path)
    assert build.main(["--arch", "87", "--out", str(tmp_path)]) == 0
    major, minor = build.nvcc_version()
    assert [path.name for path in tmp_path.iterdir()] == [cubins.file_name(87, (major, minor))]
    assert cubins.shipped(87, (major, 9)) is not None
    assert cubins.shipped(90, (major, 9)) is None
    assert cubins.shipped(87, (major + 1, 0)) is None
    bad = tmp_path / "bad.cu"
    bad.write_text("not C++", encoding="utf-8")
    with pytest.raises(KernelUnavailable, match=r"nvcc failed for sm_87: .*error") as raised:
        build.compile_with_nvcc(bad, 87)
    assert "\n" not in str(raised.value)


def test_the_source_is_one_text() -> None:
    text = cubins.source()
    assert "#include" not in text
    assert "#pragma once" not in text
    assert "for_each_gradient(const float*" in text
    assert text.count('extern "C" __global__') == 2 + 1


def test_the_cache_compiles_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELREL_KERNEL_CACHE", str(tmp_path / "cache"))
    asked: list[int] = []

    def compile_source(text: str, arch: int) -> bytes:
        assert text == cubins.source()
        asked.append(arch)
        return b"\x7fELF" + bytes([arch])

    for _ in range(2):
        assert cubins.cached(90, (13, 2), compile_source) == b"\x7fELF\x5a"
    assert cubins.cached(80, (13, 2), compile_source) == b"\x7fELF\x50"
    assert cubins.cached(90, (12, 9), compile_source) == b"\x7fELF\x5a"
    assert asked == [90, 80, 90]
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(b"half a file")
    cubins.cached(90, (13, 2), compile_source)
    assert asked == [90, 80, 90, 90]
    name = cubins.file_name(90, (13, 2))
    monkeypatch.setattr(cubins, "source", lambda: "another source")
    assert cubins.file_name(90, (13, 2)) != name


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("SELREL_KERNEL_CACHE", str(blocked))
    assert cubins.cached(90, (13, 2), lambda text, arch: b"\x7fELF") == b"\x7fELF"
    monkeypatch.delenv("SELREL_KERNEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cubins.cache_folder() == tmp_path / "selrel_kernels"


def test_nvrtc_compiles_it() -> None:
    pytest.importorskip("cuda.core", reason="needs cuda-core: pip install 'selrel-zennit[gpu]'")
    from selrel_kernels.launcher import compile_with_nvrtc, nvrtc_version

    assert nvrtc_version() >= (12, 0)
    assert compile_with_nvrtc(cubins.source(), 90).startswith(b"\x7fELF")
    with pytest.raises(KernelUnavailable, match="NVRTC failed for sm_90") as raised:
        compile_with_nvrtc("not C++", 90)
    assert "\n" not in str(raised.value)
