"""What the NVIDIA driver says, asked in a process of its own: without a driver, TensorRT ends the process it is in.

    python -m selrel_deploy.runners.driver MODULE

MODULE is TensorRT's: after the driver has answered, its runtime is made once, too. The standard library alone.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from selrel_zennit.errors import InputError

MARK = "selrel driver: "
OLDEST = (12, 0)  # of what cuda-core takes

_NO_DEVICE = 100
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…
# What CUDA's runtime says of a driver that is older than itself.
_TOO_OLD = ("error: 35", "cudaerrorinsufficientdriver", "driver version is insufficient")


class Gpu(NamedTuple):
    """A GPU by its ordinal: its name, 10·major+minor of its compute capability, and the driver's CUDA version."""

    ordinal: int
    name: str
    arch: int
    cuda: tuple[int, int]


def gpu(device: str | int, module: str, version: str) -> Gpu:
    """Return the GPU ("cuda", "cuda:N" or N) on which the TensorRT called ``module`` can start.

    Raises InputError, in one sentence, where there is no driver, no GPU, not this one, or a driver that is too old.
    """
    ordinal = ordinal_of(device)
    found = ask(module)
    if found["error"]:
        raise InputError(f"the tensorrt runner needs an NVIDIA GPU: {found['error']}")
    cuda = (found["cuda"] // 1000, found["cuda"] % 1000 // 10)
    known = f"it knows CUDA {cuda[0]}.{cuda[1]}"
    if cuda < OLDEST:
        raise InputError(f"the NVIDIA driver is too old: {known}, cuda-core needs {OLDEST[0]}.{OLDEST[1]}: update it")
    if ordinal >= len(found["devices"]):
        names = ", ".join(f"cuda:{index} ({name})" for index, (name, _) in enumerate(found["devices"]))
        raise InputError(f"there is no cuda:{ordinal}; there are {names}")
    refusal = found["refusal"]
    if any(sign in refusal.lower() for sign in _TOO_OLD):
        raise InputError(f"the NVIDIA driver is too old for TensorRT {version}: {known}: update it ({refusal})")
    if refusal:
        raise InputError(f"TensorRT {version} does not start on this GPU ({refusal}): check driver and installation")
    name, arch = found["devices"][ordinal]
    return Gpu(ordinal, name, arch, cuda)


def ordinal_of(device: Any) -> int:
    """Return N of "cuda:N" or N, 0 of "cuda". Raises InputError for anything else."""
    text = f"cuda:{device}" if isinstance(device, int) and not isinstance(device, bool) else str(device)
    kind, _, number = text.partition(":")
    if kind != "cuda" or not (number.isdecimal() or text == "cuda"):
        raise InputError(f"no device {device!r} for this runner: give cuda, or cuda:N")
    return int(number or 0)


@functools.cache
def ask(module: str) -> dict[str, Any]:
    """Return what a process of its own finds: what ``look`` returns, and TensorRT's ``refusal``."""
    command = [sys.executable, "-m", __name__, module]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    answers = [json.loads(line.removeprefix(MARK)) for line in done.stdout.splitlines() if line.startswith(MARK)]
    said = (done.stderr.strip() or "nothing").splitlines()[-1]
    ended = f"the process that asked ended with code {done.returncode}, and said: {said}"
    if not answers:
        return {"error": f"the driver does not answer ({ended}): install NVIDIA's driver", "devices": [], "cuda": 0}
    found: dict[str, Any] = {"refusal": "", **answers[0]}
    if not found["error"]:
        found |= answers[1] if len(answers) > 1 else {"refusal": ended}
    return found


def look(load: Callable[[str], Any] = ctypes.CDLL) -> dict[str, Any]:
    """Return ``error`` (a sentence, empty where a GPU is there), ``cuda`` (such as 13020) and ``devices``."""
    found: dict[str, Any] = {"error": "", "cuda": 0, "devices": []}
    try:
        driver = load("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return {**found, "error": "there is no driver: install NVIDIA's"}
    number = ctypes.c_int()
    # Asked first: an old driver answers this even where it cannot start.
    if driver.cuDriverGetVersion(ctypes.byref(number)) == 0:
        found["cuda"] = number.value
    status = driver.cuInit(0)
    if status == _NO_DEVICE:
        return {**found, "error": "the driver finds none: check that one is there and visible (CUDA_VISIBLE_DEVICES)"}
    if status:
        return {**found, "error": f"the driver does not start (CUDA error {status}): install it again, and restart"}
    driver.cuDeviceGetCount(ctypes.byref(number))
    for ordinal in range(number.value):
        name, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGetName(name, len(name), ordinal)
        driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, ordinal)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, ordinal)
        found["devices"].append([name.value.decode(errors="replace"), 10 * major.value + minor.value])
    return found


def start(module: str) -> dict[str, str]:
    """Make TensorRT's runtime, and return its ``refusal``: its first error, empty where there is none."""
    trt = importlib.import_module(module)
    said: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                said.append(message)

    log = Log()
    try:
        trt.Runtime(log)
    except Exception as error:  # the bindings' own
        said.append(str(error))
    return {"refusal": " ".join(said[0].split()) if said else ""}


def main(module: str, load: Callable[[str], Any] = ctypes.CDLL) -> None:
    """Print what ``look`` finds and, where there is a GPU, what TensorRT says: it may end this process."""
    found = look(load)
    print(MARK + json.dumps(found), flush=True)
    if not found["error"]:
        print(MARK + json.dumps(start(module)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
