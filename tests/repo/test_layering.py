"""Imports run one way: kernels ← zennit ← deploy ← benchmarks. The device path loads NumPy, OpenCV, PyAV and click."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from repo.tree import DEVICE_PATH, PACKAGES, ROOT, SOURCES, imports, modules

# What each package may import besides itself. The command line joins them by strings, which are no imports.
MAY_IMPORT: dict[str, set[str]] = {
    "selrel_kernels": set(),
    "selrel_zennit": {"selrel_kernels"},
    "selrel_deploy": {"selrel_kernels", "selrel_zennit"},
}

ON_DEVICE = {"av", "click", "cv2", "numpy"} | sys.stdlib_module_names


def reversed_imports(package: str, sources: dict[str, Path]) -> list[str]:
    """Return the imports in ``sources`` of a package, or a folder of the repository, that ``package`` must not know."""
    allowed = MAY_IMPORT[package] | {package}
    ours = {*PACKAGES, "benchmarks", "tests", "kernels", "deploy"}
    return [
        f"{path}:{found.line} imports {found.name}"
        for name, path in sources.items()
        for found in imports(path, name)
        if (top := found.name.partition(".")[0]) in ours and top not in allowed
    ]


def loaded_from(start: str, sources: dict[str, Path]) -> dict[str, str]:
    """Return what is loaded along with a module: the top name of each foreign module → the file and line that ask."""
    foreign: dict[str, str] = {}
    waiting, seen = [start], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in sources:
            for found in imports(sources[name], name):
                top = found.name.partition(".")[0]
                if found.on_load and top in PACKAGES:
                    waiting.append(found.name)
                elif found.on_load:
                    foreign.setdefault(top, f"{sources[name]}:{found.line}")
        if parent := name.rpartition(".")[0]:
            waiting.append(parent)
    return foreign


def circles(sources: dict[str, Path]) -> list[list[str]]:
    """Return the groups of modules that import one another, at load or later; imports for types alone do not count."""
    reached: dict[str, set[str]] = {}
    for name, path in sources.items():
        found = [one.name for one in imports(path, name) if not one.for_types]
        # "from a import b" counts as a.b where that is a module, and as a where it is none.
        packages = {one.rpartition(".")[0] for one in found if one in sources}
        reached[name] = {one for one in found if one in sources and one not in packages} - {name}
    growing = True
    while growing:
        growing = False
        for known in reached.values():
            more = set().union(*(reached[one] for one in known)) - known
            growing = growing or bool(more)
            known |= more
    groups = {tuple(sorted(one for one in known if name in reached[one])) for name, known in reached.items()}
    return [list(group) for group in sorted(groups) if group]


def test_no_modules_import_one_another() -> None:
    assert not circles(SOURCES | modules(ROOT / "benchmarks"))


def test_a_circle_is_found(tmp_path: Path) -> None:
    sources = {}
    for name, source in {
        "a": "def late():\n    import b",
        "b": "from c import thing",
        "c": "import a",
        "d": "import a\nif TYPE_CHECKING:\n    import e",
        "e": "import d",
    }.items():
        sources[name] = tmp_path / f"{name}.py"
        sources[name].write_text(source, encoding="utf-8")
    assert circles(sources) == [["a", "b", "c"]]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    assert not reversed_imports(package, modules(PACKAGES[package], package))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_modules(package: str) -> None:
    assert (PACKAGES[package] / "__init__.py") in modules(PACKAGES[package], package).values()


def test_folders_are_no_packages() -> None:
    assert not [name for name in ("kernels", "deploy", "benchmarks", "tests") if (ROOT / name / "__init__.py").exists()]


@pytest.mark.parametrize("module", DEVICE_PATH)
def test_device_path_loads_light_modules_only(module: str) -> None:
    assert module in SOURCES, f"{module} is part of the device path and does not exist"
    heavy = {name: where for name, where in loaded_from(module, SOURCES).items() if name not in ON_DEVICE}
    assert not heavy


@pytest.mark.parametrize(
    "source",
    [
        "import selrel_deploy",
        "def late():\n    from selrel_deploy.artifact.format import read",
        "if TYPE_CHECKING:\n    import selrel_deploy",
        "import importlib\nimportlib.import_module('selrel_deploy.artifact.export')",
        "from benchmarks import timing",
        "try:\n    import kernels\nexcept ImportError:\n    pass",
    ],
)
def test_a_reversed_import_is_found(tmp_path: Path, source: str) -> None:
    path = tmp_path / "planted.py"
    path.write_text(source, encoding="utf-8")
    assert len(reversed_imports("selrel_zennit", {"selrel_zennit.planted": path})) >= 1


def test_an_allowed_import_is_not(tmp_path: Path) -> None:
    path = tmp_path / "planted.py"
    path.write_text("import selrel_kernels\nfrom . import clip\nTABLE = {'run': 'selrel_deploy.cli:run'}", "utf-8")
    assert not reversed_imports("selrel_zennit", {"selrel_zennit.planted": path})


def test_what_loads_is_followed(tmp_path: Path) -> None:
    planted = {
        "selrel_zennit": "",
        "selrel_zennit.first": "from .inner import second\nif TYPE_CHECKING:\n    import torch",
        "selrel_zennit.inner": "import scipy",
        "selrel_zennit.inner.second": "def f(x=__import__('zennit')):\n    import matplotlib\nclass A:\n    import PIL",
    }
    sources = {}
    for name, source in planted.items():
        sources[name] = tmp_path / f"{name}.py" if name != "selrel_zennit.inner" else tmp_path / "__init__.py"
        sources[name].write_text(source, encoding="utf-8")
    assert set(loaded_from("selrel_zennit.first", sources)) == {"scipy", "zennit", "PIL"}
