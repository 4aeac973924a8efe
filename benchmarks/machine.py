"""What a figure was measured on, for the JSON files of benchmarks/results."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from selrel_zennit.files import atomic_path

# What asks glibc for huge pages, when a process starts.
HUGE = "glibc.malloc.hugetlb=1"
PACKAGES = ("torch", "zennit", "numpy", "opencv-python-headless", "onnxruntime", "openvino")


def machine(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Return processor, memory, GPU, versions, commit, threads and time. No host name, no user, no path."""
    return {
        "processor": _from_file("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **_versions(packages)},
        "commit": _commit(),
        "threads": torch.get_num_threads(),
        "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def with_pages(environment: Mapping[str, str], huge: bool) -> dict[str, str]:
    """Return an environment that asks for huge pages of memory, or not; other settings of the C library stay."""
    settings = [text for text in environment.get("GLIBC_TUNABLES", "").split(":") if text and "hugetlb" not in text]
    return {**environment, "GLIBC_TUNABLES": ":".join([*settings, HUGE] if huge else settings)}


def write_json(path: Path, value: Any, ensure_ascii: bool = True) -> None:
    """Write results whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=ensure_ascii) + "\n", encoding="utf-8")


def _from_file(path: str, field: str) -> str | None:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), None)


def _memory_gib() -> float | None:
    total = _from_file("/proc/meminfo", "MemTotal")
    return round(int(total.split()[0]) / 2**20, 1) if total else None


def _versions(packages: Iterable[str]) -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _commit() -> dict[str, Any] | None:
    """Return the hash of the checkout this file is in, and whether the working tree differs from it."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"hash": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
