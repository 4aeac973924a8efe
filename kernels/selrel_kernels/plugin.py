"""The kernel as a TensorRT plugin: find TensorRT's headers and compile ``libselrel_motion_plugin.so`` with nvcc.

``python -m selrel_kernels.build --plugin`` calls it. The plugin is optional; kernels/README.md says who needs it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .plan import KernelUnavailable

LIBRARY = "libselrel_motion_plugin.so"
SOURCE = Path(__file__).parent / "csrc" / "motion_plugin.cu"
HEADER = "NvInferRuntime.h"

_SYSTEM = ("/usr/include", "/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu", "/usr/local/include")
# What the plugin derives from; TensorRT 8 lacks it.
_NEEDED = "IPluginV3OneRuntime"


def find_headers(tensorrt: Path | None = None) -> Path:
    """Return the folder of TensorRT's headers: below ``tensorrt`` or, without it, where compilers and packages look.

    These are TENSORRT_ROOT, CPATH, and the system's folders. Raises KernelUnavailable, in one line, where no folder has
    them or they are older than TensorRT 10.
    """
    roots = [tensorrt] if tensorrt is not None else [Path(root) for root in _entries("TENSORRT_ROOT")]
    folders = [folder for root in roots for folder in (root / "include", root)]
    if tensorrt is None:
        folders += [Path(entry) for entry in (*_entries("CPATH"), *_SYSTEM)]
    for folder in folders:
        if (folder / HEADER).is_file():
            if any(_NEEDED in file.read_text(encoding="utf-8", errors="replace") for file in folder.glob("NvInfer*.h")):
                return folder
            raise KernelUnavailable(f"the headers in {folder} are older than TensorRT 10, which the plugin needs")
    where = f"below {tensorrt}" if tensorrt is not None else "in TENSORRT_ROOT, CPATH or the system's folders"
    raise KernelUnavailable(
        f"{HEADER} is not {where}: install TensorRT's headers (libnvinfer-headers-dev) or give --tensorrt DIR"
    )


def compile_plugin(headers: Path, out: Path, architectures: Sequence[int], nvcc: str = "nvcc") -> Path:
    """Compile the plugin for ``architectures`` (90 for sm_90) into the folder ``out``; return the library.

    Raises KernelUnavailable where there is no nvcc, or it fails; the message holds its first error.
    """
    library = out / LIBRARY
    command = [nvcc, "-shared", "-std=c++17", "-O2", "-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{headers}"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    try:
        done = subprocess.run([*command, "-o", library, SOURCE, "-ldl"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise KernelUnavailable(f"{nvcc} is missing: install the CUDA toolkit, or name it with --nvcc") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line or "fatal" in line]
        raise KernelUnavailable(f"nvcc failed: {(lines or [done.stderr.strip() or 'no message'])[0]}")
    return library


def _entries(variable: str) -> list[str]:
    return [entry for entry in os.environ.get(variable, "").split(os.pathsep) if entry]
