"""Machine code of the kernel: found beside the package or in the user's cache, or compiled by NVRTC and kept there."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

HEADER = "motion_tiles.cuh"
SHIPPED = Path(__file__).parent / "cubins"

Compiler = Callable[[str, int], bytes]


def source() -> str:
    """Return the kernel's source as one text, with its header in place of the line that includes it."""
    folder = resources.files(__package__).joinpath("csrc")
    text, header = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("select_motion.cu", HEADER))
    return text.replace(f'#include "{HEADER}"\n', header.replace("#pragma once\n", ""))


def file_name(arch: int, toolkit: tuple[int, int]) -> str:
    """Name a cubin by source, architecture (90 for sm_90) and the CUDA version of its compiler: none can be stale."""
    digest = hashlib.sha256(source().encode()).hexdigest()[:16]
    return f"select_motion-{digest}-sm_{arch}-cuda{toolkit[0]}.{toolkit[1]}.cubin"


def cache_folder() -> Path:
    """Return the folder that compiled kernels are kept in: SELREL_KERNEL_CACHE, or one in the user's cache."""
    if chosen := os.environ.get("SELREL_KERNEL_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "selrel_kernels"


def shipped(arch: int, driver: tuple[int, int]) -> bytes | None:
    """Return the cubin for ``arch`` that lies beside the package (``python -m selrel_kernels.build`` puts it there).

    ``driver`` is the CUDA version of the driver: one of the same major version can load it.
    """
    pattern = file_name(arch, (driver[0], 0)).replace(f"cuda{driver[0]}.0", f"cuda{driver[0]}.*")
    found = sorted(SHIPPED.glob(pattern)) if SHIPPED.is_dir() else []
    return found[-1].read_bytes() if found else None


def cached(arch: int, toolkit: tuple[int, int], compile_source: Compiler) -> bytes:
    """Return the cubin for ``arch`` from the cache, or compile it and keep it there.

    A cache that cannot be read or written costs time and nothing else. A file that is no ELF file is compiled again.
    """
    path = cache_folder() / file_name(arch, toolkit)
    try:
        code = path.read_bytes()
        if code.startswith(b"\x7fELF"):
            return code
    except OSError:
        pass
    code = compile_source(source(), arch)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as partial:
            partial.write(code)
        os.replace(partial.name, path)
    except OSError:
        pass
    return code
