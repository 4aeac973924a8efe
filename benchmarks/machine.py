"""What a figure was measured on, for the JSON files of benchmarks/results."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from selrel_deploy.bench import conditions
from selrel_zennit.files import atomic_path

# What asks glibc for huge pages, when a process starts.
HUGE = "glibc.malloc.hugetlb=1"
PACKAGES = ("torch", "zennit", "numpy", "opencv-python-headless", "onnxruntime", "openvino")


def machine(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Return what `selrel bench` says of a machine, with GPU, commit and threads."""
    return {
        **conditions.machine(packages),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _commit(),
        "threads": torch.get_num_threads(),
    }


def with_pages(environment: Mapping[str, str], huge: bool) -> dict[str, str]:
    """Return an environment that asks for huge pages of memory, or not; other settings of the C library stay."""
    settings = [text for text in environment.get("GLIBC_TUNABLES", "").split(":") if text and "hugetlb" not in text]
    return {**environment, "GLIBC_TUNABLES": ":".join([*settings, HUGE] if huge else settings)}


def write_json(path: Path, value: Any, ensure_ascii: bool = True) -> None:
    """Write results whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=ensure_ascii) + "\n", encoding="utf-8")


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
