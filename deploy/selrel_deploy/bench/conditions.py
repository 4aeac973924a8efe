"""What a figure was measured under: processor, versions, load by others, memory. The standard library alone."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..runners.base import processor

PACKAGES = (
    "selrel-zennit",
    "torch",
    "zennit",
    "numpy",
    "opencv-python-headless",
    "av",
    "onnx",
    "onnxruntime",
    "openvino",
    "captum",
    "grad-cam",
)
# Above this share of the cores, used by others, timings are no longer the table's own.
NOISY = 0.05


def machine(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Return processor, cores, memory, system, versions and time. No host name, no user, no path."""
    return {
        "processor": processor(),
        "cores": cores(),
        "memory_bytes": _kilobytes("/proc/meminfo", "MemTotal"),
        "system": f"{platform.system()} {platform.machine()}",
        "huge_pages": huge_pages(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def huge_pages() -> bool | None:
    """Return whether large arrays from the C library's malloc lie in huge pages (None: the system does not tell).

    One is made and looked at: what the system was asked, by whom and in which of its versions does not matter.
    """
    if platform.system() != "Linux":
        return None
    libc, size = ctypes.CDLL(None), 1 << 26
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    place = libc.malloc(size)
    if place is None:
        return None
    try:
        ctypes.memset(place, 1, size)
        return _lies_in_huge_pages(place + size // 2)
    finally:
        libc.free(place)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class MachineWatch:
    """Watches the machine from ``start`` to ``stop``: load average, clock rate, and what other processes took."""

    def __init__(self) -> None:
        self._busy, self._own, self._since = _busy_seconds(), _own_seconds(), time.monotonic()
        self._before = {"load_average": _load(), "mhz": _mhz()}

    def stop(self) -> dict[str, Any]:
        """Return load averages and clock rates before and after, and ``others``, a share of all cores (None: unknown).

        ``others`` counts processor time of other processes, and what the host of a virtual machine kept for itself.
        """
        others = None
        busy, wall = _busy_seconds(), time.monotonic() - self._since
        if busy is not None and self._busy is not None and wall > 0:
            own = _own_seconds() - self._own
            others = max(busy - self._busy - own, 0.0) / (wall * (os.cpu_count() or 1))
        after = {"load_average": _load(), "mhz": _mhz()}
        return {"before": self._before, "after": after, "others": others, "seconds": wall}


def memory_of(make: Callable[[], object], call: Callable[[], object], shared: int = 0) -> dict[str, int | None]:
    """Run ``make``, then ``call`` twice; return bytes ``held`` between calls, ``working`` during one, and ``peak``.

    ``held`` is what resident memory grew by, plus ``shared``: what the row uses and others hold already, such as the
    network's weights. All None where the system does not tell (it is Linux that does).
    """
    _give_back()
    before = _resident("VmRSS")
    make()
    call()
    _give_back()
    between = _resident("VmRSS")
    if before is None or between is None or not _reset_peak():
        return {"held": None, "working": None, "peak": None}
    call()
    highest = _resident("VmHWM")
    assert highest is not None
    held, working = max(between - before, 0) + shared, max(highest - between, 0)
    return {"held": held, "working": working, "peak": held + working}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _mhz() -> float | None:
    """Return the mean clock rate of all cores, as the system says it."""
    rates = [float(line.split(":")[1]) for line in _lines("/proc/cpuinfo") if line.startswith("cpu MHz")]
    return sum(rates) / len(rates) if rates else None


def _busy_seconds() -> float | None:
    line = next(iter(_lines("/proc/stat")), "")
    if not line.startswith("cpu "):
        return None
    user, nice, system, _, _, irq, softirq, steal = (int(value) for value in line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _give_back() -> None:
    """Collect garbage, and give freed memory back to the system where the C library can."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _resident(field: str) -> int | None:
    return _kilobytes("/proc/self/status", field)


def _kilobytes(path: str, field: str) -> int | None:
    line = next((line for line in _lines(path) if line.startswith(field)), None)
    return 1024 * int(line.split()[1]) if line else None


def _lies_in_huge_pages(address: int) -> bool | None:
    """Return whether most of the mapping that holds an address is in huge pages, as the system says it."""
    inside, kilobytes = False, dict[str, int]()
    for line in _lines("/proc/self/smaps"):
        field, *values = line.split()
        if not field.endswith(":"):
            start, _, end = field.partition("-")
            inside = int(start, 16) <= address < int(end, 16)
        elif inside and values[-1:] == ["kB"]:
            kilobytes[field] = int(values[0])
    if "Rss:" not in kilobytes:
        return None
    huge = sum(kilobytes.get(field, 0) for field in ("AnonHugePages:", "Private_Hugetlb:"))
    return 2 * huge >= kilobytes["Rss:"] + kilobytes.get("Private_Hugetlb:", 0)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
