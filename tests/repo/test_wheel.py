"""What is built: an archive of the source, and from it one wheel with three packages, all their files and no others."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from repo.tree import PACKAGES, ROOT, project_files

LIMIT = 8 * 2**20
NAMES = set(PACKAGES)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive and the wheel made from it, without a network."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return archive, wheel


@pytest.fixture(scope="module")
def contents(built: tuple[Path, Path]) -> set[str]:
    """The names of the files in the wheel."""
    with zipfile.ZipFile(built[1]) as wheel:
        return {name for name in wheel.namelist() if not name.endswith("/")}


def dist_info(contents: set[str]) -> str:
    (folder,) = {name.partition("/")[0] for name in contents} - NAMES
    return folder


def test_top_level(contents: set[str]) -> None:
    top = {name.partition("/")[0] for name in contents}
    assert top >= NAMES
    assert dist_info(contents).startswith("selrel_zennit-")
    assert dist_info(contents).endswith(".dist-info")


def test_every_file_of_the_packages_and_no_other(contents: set[str]) -> None:
    shipped = {name for name in contents if name.partition("/")[0] in NAMES}
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in project_files(folder)
    }
    assert shipped == expected


def test_what_a_user_needs_is_there(contents: set[str]) -> None:
    for package in PACKAGES:
        assert f"{package}/py.typed" in contents
    for name in ("LICENSE", "NOTICE.md"):
        assert f"{dist_info(contents)}/licenses/{name}" in contents
    assert "selrel_zennit/synthetic/embedded.py" in contents
    weights = [name for name in contents if name.endswith(".safetensors")]
    assert weights, "the demo network's weights are missing: selrel_zennit/models/*.safetensors"
    assert all(name.startswith("selrel_zennit/models/") for name in weights)


def test_what_a_user_does_not_need_is_not(contents: set[str]) -> None:
    parts = {part for name in contents for part in name.split("/")}
    assert not parts & {"tests", "benchmarks", "results", "kernels", "deploy", "__pycache__", "conftest.py"}


def test_small(built: tuple[Path, Path]) -> None:
    for path in built:
        assert path.stat().st_size < LIMIT


def test_metadata(built: tuple[Path, Path], contents: set[str]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        metadata = wheel.read(f"{dist_info(contents)}/METADATA").decode()
        entry_points = wheel.read(f"{dist_info(contents)}/entry_points.txt").decode()
    assert "License-Expression: BSD-3-Clause" in metadata
    assert "Requires-Python: >=3.10" in metadata
    assert "selrel = selrel_zennit.cli:main" in entry_points


def test_source_archive(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CITATION.cff", ".ci/run", "tests/conftest.py"} <= names
    assert not [name for name in names if name.startswith(("out/", "dist/", ".git/", ".venv/", ".mypy_cache/"))]


def test_installed_wheel_imports_by_its_own_names_only(built: tuple[Path, Path], tmp_path: Path) -> None:
    """With nothing but the standard library beside it, the wheel gives three packages, and no `kernels` or `deploy`."""
    site = tmp_path / "site"
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(site)
    source = f"""
import importlib.util, sys
sys.path.append({str(site)!r})
import selrel_zennit, selrel_kernels, selrel_deploy
for module in (selrel_zennit, selrel_kernels, selrel_deploy):
    assert module.__file__.startswith({str(site)!r}), module.__file__
for name in ("kernels", "deploy", "benchmarks", "tests"):
    assert importlib.util.find_spec(name) is None, name
print(selrel_zennit.__version__)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", source], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"selrel_zennit-{done.stdout.strip()}-" in built[1].name
