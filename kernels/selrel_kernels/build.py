"""``python -m selrel_kernels.build``: compile the kernel ahead of its first use, with nvcc, and report what it takes.

The cubins lie beside the package (or in ``--out``) and are then used in place of NVRTC: on a device without it, say. A
cubin runs on its own architecture, under drivers of its CUDA's major version; so none are part of the project.

With ``--plugin`` it compiles the TensorRT plugin instead, where TensorRT's headers are found.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import cubins, plugin
from .plan import KernelUnavailable

ARCHITECTURES = (80, 87, 90, 110, 120)

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_\d+'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def compile_with_nvcc(source: Path, arch: int, nvcc: str = "nvcc") -> tuple[bytes, dict[str, dict[str, int]]]:
    """Compile ``source`` for ``arch`` (90 for sm_90) → cubin, and for each kernel its registers, stack and spills.

    Raises KernelUnavailable where there is no nvcc, or it fails; the message holds its first error.
    """
    output = source.parent / f".{source.stem}.sm_{arch}.partial"
    command = [nvcc, "-cubin", "-std=c++17", f"-arch=sm_{arch}", "-Xptxas", "-v", "-o", str(output), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line or "fatal" in line]
            raise KernelUnavailable(f"nvcc failed for sm_{arch}: {(lines or [done.stderr.strip() or 'no message'])[0]}")
        return output.read_bytes(), resources(done.stderr)
    except FileNotFoundError:
        raise KernelUnavailable(f"{nvcc} is missing: install the CUDA toolkit, or name it with --nvcc") from None
    finally:
        output.unlink(missing_ok=True)


def resources(log: str) -> dict[str, dict[str, int]]:
    """Read registers, stack and spills (bytes) of each kernel from ptxas's report."""
    return {
        entry["name"]: {field: int(entry[field]) for field in ("registers", "stack", "stores", "loads")}
        for entry in _ENTRY.finditer(log)
    }


def nvcc_version(nvcc: str = "nvcc") -> tuple[int, int]:
    """Return the CUDA version of nvcc. Raises KernelUnavailable where there is none."""
    try:
        done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise KernelUnavailable(f"{nvcc} is missing: install the CUDA toolkit, or name it with --nvcc") from None
    found = re.search(r"release (\d+)\.(\d+)", done.stdout)
    if not found:
        raise KernelUnavailable(f"{nvcc} --version does not tell its version")
    return int(found[1]), int(found[2])


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, write the cubins, print one line for each kernel. Return 1 where one spills or none can be compiled.

    With ``--plugin``: write the library and print its path; return 2 where TensorRT's headers are not found, 1 where
    nvcc fails.
    """
    parser = argparse.ArgumentParser(prog="python -m selrel_kernels.build", description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="90 for sm_90 (default: all listed)")
    parser.add_argument(
        "--out", type=Path, help="folder of the cubins (default: the package) or plugin (default: here)"
    )
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--record", type=Path, metavar="JSON", help="write registers, stack and spills to this file")
    parser.add_argument("--plugin", action="store_true", help="compile the TensorRT plugin, and no cubins")
    parser.add_argument("--tensorrt", type=Path, metavar="DIR", help="where TensorRT is (DIR/include), for --plugin")
    options = parser.parse_args(arguments)
    if options.plugin:
        return _build_plugin(options)
    out: Path = options.out or cubins.SHIPPED
    report: dict[str, Any] = {}
    try:
        version = nvcc_version(options.nvcc)
        out.mkdir(parents=True, exist_ok=True)
        source = out / "select_motion.cu"
        source.write_text(cubins.source(), encoding="utf-8")
        for arch in options.arch:
            code, report[f"sm_{arch}"] = compile_with_nvcc(source, arch, options.nvcc)
            (out / cubins.file_name(arch, version)).write_bytes(code)
            for name, used in sorted(report[f"sm_{arch}"].items()):
                print(f"sm_{arch} {name}: " + ", ".join(f"{value} {field}" for field, value in used.items()))
        source.unlink()
    except KernelUnavailable as error:
        print(f"error: {error}")
        return 1
    if options.record:
        digest = hashlib.sha256(cubins.source().encode()).hexdigest()
        whole = {"nvcc": ".".join(map(str, version)), "source_sha256": digest, "kernels": report}
        options.record.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    spills = [
        used["stack"] + used["stores"] + used["loads"] for kernels in report.values() for used in kernels.values()
    ]
    return int(any(spills))


def _build_plugin(options: argparse.Namespace) -> int:
    try:
        headers = plugin.find_headers(options.tensorrt)
    except KernelUnavailable as error:
        print(f"the TensorRT plugin is left out: {error}")
        return 2
    out: Path = options.out or Path()
    try:
        out.mkdir(parents=True, exist_ok=True)
        print(plugin.compile_plugin(headers, out, options.arch, options.nvcc))
    except KernelUnavailable as error:
        print(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
