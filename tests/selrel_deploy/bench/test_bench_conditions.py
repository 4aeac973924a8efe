"""What a benchmark ran under: other work on the machine, pages of memory, and the memory of a row."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from selrel_deploy.bench import conditions, report
from selrel_deploy.bench.conditions import MachineWatch, memory_of


def test_other_work_is_seen_and_said(monkeypatch):
    busy, own = iter([10.0, 16.0]), iter([1.0, 3.0])
    monkeypatch.setattr(conditions, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(conditions, "_own_seconds", lambda: next(own))
    now = iter([0.0, 8.0])
    monkeypatch.setattr(conditions.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(conditions.os, "cpu_count", lambda: 2)
    found = MachineWatch().stop()
    assert found["others"] == pytest.approx((6 - 2) / (8 * 2))
    warmed = {"not_stable": ["dtd eager fp32"], "seconds": 60.0}
    said = " ".join(report._warnings(warmed, found, 200, 16, 1))
    assert "other work took 25% of the machine's cores" in said
    assert "dtd eager fp32" in said
    assert not report._warnings({"not_stable": []}, {**found, "others": 0.01}, 200, 16, 1)
    unknown = {"others": None, "before": {"load_average": 3.0}}
    assert "load average 3.0 with 1 threads" in report._warnings({"not_stable": []}, unknown, 200, 16, 1)[0]


def smaps(*mappings):
    """Return /proc/self/smaps of mappings of 64 MB: (start, what of 64 MB is huge, the name of its field)."""
    return [
        line
        for start, huge, field in mappings
        for line in (
            f"{start:x}-{start + (1 << 26):x} rw-p 00000000 00:00 0 [anon: a name]",
            f"Rss:   {0 if field == 'Private_Hugetlb' else 1 << 16} kB",
            f"{field}:   {huge << 10} kB",
            "THPeligible:           1",
            "VmFlags: rd wr mr mw me ac sd hg",
        )
    ]


@pytest.mark.parametrize(
    ("field", "megabytes", "huge"),
    [("AnonHugePages", 62, True), ("AnonHugePages", 2, False), ("Private_Hugetlb", 64, True)],
)
def test_huge_pages_are_those_of_the_array(field, megabytes, huge, monkeypatch):
    other = 0x5000_0000
    lines = smaps((other, 64 - megabytes, "AnonHugePages"), (0x7000_0000, megabytes, field))
    monkeypatch.setattr(conditions, "_lines", lambda path: lines)
    assert conditions._lies_in_huge_pages(0x7000_0000 + 5000) is huge
    assert conditions._lies_in_huge_pages(0x1000) is None


def test_a_system_that_does_not_tell_of_huge_pages(monkeypatch):
    monkeypatch.setattr(conditions, "_lines", lambda path: [])
    assert conditions.huge_pages() is None


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says which pages an array lies in")
def test_huge_pages_are_what_the_system_gave():
    """A process that may have none sees none, whatever it asks for. Where freed memory is kept, an array is not new."""
    code = (
        "import ctypes, sys; ctypes.CDLL(None).prctl(41, int(sys.argv[1]), 0, 0, 0); "
        "from selrel_deploy.bench.conditions import huge_pages; "
        "from selrel_deploy.runners.memory import keep_freed_memory; "
        "first = huge_pages(); keep_freed_memory(); print(first, huge_pages(), huge_pages())"
    )

    def said(disabled, tunables):
        environment = {**os.environ, "GLIBC_TUNABLES": tunables}
        command = [sys.executable, "-c", code, str(disabled)]
        return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.split()

    assert said(1, "glibc.malloc.hugetlb=1") == ["False"] * 3
    modes = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if modes.is_file() and "[madvise]" in modes.read_text():
        assert said(0, "glibc.malloc.hugetlb=0") == ["False"] * 3
        assert said(0, "glibc.malloc.hugetlb=1") == ["True"] * 3


def test_memory_is_what_is_held_and_what_a_call_needs():
    held = []

    def call():
        np.ones(40_000_000, np.uint8).sum()

    found = memory_of(lambda: held.append(np.ones(80_000_000, np.uint8)), call, shared=1_000_000)
    assert found["held"] == pytest.approx(81e6, rel=0.1)
    assert found["working"] == pytest.approx(40e6, rel=0.1)
    assert found["peak"] == found["held"] + found["working"]
