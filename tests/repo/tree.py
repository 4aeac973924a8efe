"""The files of the project and the imports they make, read from the source without importing anything."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

PACKAGES = {
    "selrel_zennit": ROOT / "selrel_zennit",
    "selrel_kernels": ROOT / "kernels/selrel_kernels",
    "selrel_deploy": ROOT / "deploy/selrel_deploy",
}

_BUILT = {"__pycache__", "build", "dist", "out"}
_HIDDEN = {".ci", ".gitignore", ".pre-commit-config.yaml"}


class Import(NamedTuple):
    """One imported module: its absolute name, the line, whether it runs on load, and whether types alone ask for it."""

    name: str
    line: int
    on_load: bool
    for_types: bool = False


def project_files(under: Path = ROOT) -> list[Path]:
    """Return the files git tracks, or would, below ``under``; in a source archive: every file that is not built."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", str(under)],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0 and listing.stdout:
        paths = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    else:
        paths = [path for path in under.rglob("*") if not _is_built(path.relative_to(ROOT))]
    return sorted(path for path in paths if path.is_file())


def _is_built(path: Path) -> bool:
    return any(part in _BUILT or (part.startswith(".") and part not in _HIDDEN) for part in path.parts)


def modules(folder: Path, package: str = "") -> dict[str, Path]:
    """Return module name → file for the Python files below ``folder``; ``package`` is the folder's import name."""
    found = {}
    for path in project_files(folder):
        if path.suffix == ".py":
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts) if package else parts)] = path
    return found


def imports(path: Path, module: str) -> Iterator[Import]:
    """Yield every import in a file: statements at any depth, ``import_module("x")`` and ``__import__("x")``.

    ``from a import b`` yields both ``a`` and ``a.b``, since ``b`` may be a module. An import under
    ``if TYPE_CHECKING`` or in the body of a function does not run on load.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    yield from _imports(ast.parse(path.read_text(encoding="utf-8"), str(path)), package, on_load=True)


def _imports(node: ast.AST, package: str, on_load: bool, for_types: bool = False) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno, on_load, for_types)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, base] if base else parents)
        yield Import(base, node.lineno, on_load, for_types)
        for alias in node.names:
            yield Import(f"{base}.{alias.name}", node.lineno, on_load, for_types)
    elif isinstance(node, ast.Call) and _is_import_call(node.func):
        name = node.args[0] if node.args else None
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            base = package if name.value.startswith(".") else ""
            yield Import(base + name.value, node.lineno, on_load, for_types)
    inert = _not_on_load(node)
    for child in ast.iter_child_nodes(node):
        skipped = any(child is part for part in inert)
        typed = for_types or (skipped and isinstance(node, ast.If))
        yield from _imports(child, package, on_load and not skipped, typed)


def _not_on_load(node: ast.AST) -> list[ast.stmt] | list[ast.expr]:
    """Return the children of a node that do not run when the module is loaded."""
    if isinstance(node, ast.Lambda):
        return [node.body]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return node.body
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return node.body
    return []


def _is_import_call(function: ast.expr) -> bool:
    return ast.unparse(function) in ("importlib.import_module", "import_module", "__import__")


SOURCES = {name: path for package, folder in PACKAGES.items() for name, path in modules(folder, package).items()}

# What a device imports. Modules of selrel_deploy that run there join when they exist.
# What loads where torch, torchvision and Zennit are missing: rooms as a whole, and single modules of others.
_DEVICE_ROOMS = (
    *("selrel_zennit.clips", "selrel_zennit.outputs", "selrel_zennit.synthetic"),
    *("selrel_deploy.live", "selrel_deploy.parity", "selrel_deploy.runners"),
)
_NOT_ON_A_DEVICE = {
    *("selrel_deploy.parity.zennit_reference", "selrel_deploy.runners.tensorrt.plugin"),
    # The server loads what the extra "live" brings, when it is asked for.
    *("selrel_deploy.live.server", "selrel_deploy.live.torch_engines"),
}
DEVICE_PATH = [
    *("selrel_kernels", "selrel_kernels.lazy"),
    *("selrel_zennit", "selrel_zennit.class_names", "selrel_zennit.errors", "selrel_zennit.explanation"),
    *(
        "selrel_zennit.files",
        "selrel_zennit.text",
        "selrel_zennit.loop",
        "selrel_zennit.progress",
        "selrel_zennit.spill",
    ),
    "selrel_zennit.attribution.table",
    *("selrel_zennit.calibration.stills", "selrel_zennit.selection.presets"),
    *("selrel_zennit.cli", "selrel_zennit.cli.listing", "selrel_zennit.cli.options", "selrel_zennit.cli.reporting"),
    *("selrel_deploy", "selrel_deploy.artifact", "selrel_deploy.artifact.format", "selrel_deploy.precisions"),
    *(f"selrel_deploy.bench.{name}" for name in ("conditions", "device", "report", "rows", "table", "timing")),
    *("selrel_deploy.bench.windows", "selrel_deploy.cli", "selrel_deploy.cli.bench", "selrel_deploy.cli.parity"),
    *("selrel_deploy.cli.live", "selrel_deploy.cli.run", "selrel_deploy.cli.runner_options"),
    *(name for name in SOURCES if name.startswith(tuple(f"{room}." for room in _DEVICE_ROOMS))),
]
DEVICE_PATH = [name for name in DEVICE_PATH if name not in _NOT_ON_A_DEVICE]
