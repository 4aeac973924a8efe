"""ruff and mypy pass on the project and, with its own settings, complain about what they are there to find."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from repo.tree import DEVICE_PATH, ROOT, SOURCES

CONFIG = ROOT / "pyproject.toml"


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def ruff_check(path: Path) -> subprocess.CompletedProcess[str]:
    return run("ruff", "check", "--config", str(CONFIG), "--output-format", "concise", "--no-cache", str(path))


def mypy(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("mypy", "--config-file", str(CONFIG), *arguments)


def test_ruff_passes() -> None:
    done = ruff_check(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_format_passes() -> None:
    done = run("ruff", "format", "--config", str(CONFIG), "--check", "--no-cache", str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_mypy_passes() -> None:
    done = mypy()
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("import os\n", "F401"),
        ("import sys\nimport os\n\nprint(os, sys)\n", "I001"),
        ("def add(value, to=[]):\n    return [*to, value]\n", "B006"),
        ("import numpy as np\n\nnp.random.seed(0)\n", "NPY002"),
        ('"""Doc."""\n\n\ndef undocumented():\n    return 1\n', "D103"),
        ("x = 1" + " " * 3 + "# " + "long " * 30 + "\n", "E501"),
        ("def f():\n    return undefined\n", "F821"),
    ],
)
def test_ruff_finds_a_fault(tmp_path: Path, source: str, code: str) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(source, encoding="utf-8")
    done = ruff_check(planted)
    assert done.returncode == 1
    assert f" {code} " in done.stdout


@pytest.mark.parametrize(
    ("source", "since"),
    [
        ("type X = int\n", "3.12"),
        ("def first[T](items: list[T]) -> T:\n    return items[0]\n", "3.12"),
        ('names = ["a"]\nprint(f"{", ".join(names)}")\n', "3.12"),
        ("try:\n    print()\nexcept* OSError:\n    pass\n", "3.11"),
        ("items = {}\nprint(items[*(1, 2)])\n", "3.11"),
    ],
    ids=["type", "type parameter", "f-string", "except*", "star index"],
)
def test_ruff_finds_syntax_newer_than_3_10(tmp_path: Path, source: str, since: str) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(f'"""Doc."""\n\n{source}', encoding="utf-8")
    done = ruff_check(planted)
    assert done.returncode == 1
    assert "invalid-syntax" in done.stdout
    assert f"Python {since}" in done.stdout


def test_ruff_lets_good_code_pass(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text('"""Doc."""\n\nmatch [1]:\n    case [one]:\n        print(one)\n', encoding="utf-8")
    assert ruff_check(planted).returncode == 0


def test_ruff_format_finds_a_fault(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text("x = { 'a':1 }\n", encoding="utf-8")
    assert run("ruff", "format", "--config", str(CONFIG), "--check", "--no-cache", str(planted)).returncode == 1


FAULTS = {
    "def untyped(value):\n    return value": "no-untyped-def",
    "def generic(values: list) -> None: ...": "type-arg",
    "def wrong() -> int:\n    return 'text'": "return-value",
    "def unknown(value: int) -> None:\n    value.missing": "attr-defined",
    # The project's own classes keep their types: they are not Any to those who use them.
    "from selrel_zennit.clips.spec import ClipSpec\nClipSpec(frames='16')": "arg-type",
    "from selrel_kernels.lazy import lazy_names\nlazy_names(1, {}, {})": "arg-type",
}


@pytest.mark.slow
def test_mypy_finds_every_fault(tmp_path: Path) -> None:
    """One file for each fault, so that what is found is known to be that fault; one run, since starting is slow."""
    for number, source in enumerate(FAULTS):
        (tmp_path / f"planted_{number}.py").write_text(source + "\n", encoding="utf-8")
    done = mypy(str(tmp_path))
    assert done.returncode == 1
    for number, code in enumerate(FAULTS.values()):
        own = [line for line in done.stdout.splitlines() if f"planted_{number}.py" in line and " error: " in line]
        assert [line for line in own if line.endswith(f"[{code}]")], f"planted_{number}: {own or 'nothing'}"


@pytest.mark.slow
def test_mypy_lets_good_code_pass(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(
        "from selrel_zennit.clips.spec import ClipSpec\n\nshape: int = ClipSpec(frames=16).span\n", "utf-8"
    )
    done = mypy(str(planted))
    assert done.returncode == 0, done.stdout


def newer_than_3_10(*paths: Path) -> list[str]:
    """Return the uses of what the standard library of 3.10 lacks: a module, or a name in one.

    Types are another test's business: here NumPy's, which are written for 3.11, are not understood.
    """
    done = run("mypy", "--config-file", "", "--python-version", "3.10", "--follow-imports", "skip", *map(str, paths))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = []
    for line in done.stdout.splitlines():
        module = re.search(r'module named "(\w+)', line)
        if re.search(r'error: Module ("\S+" )?has no attribute', line) or (
            module and module[1] in sys.stdlib_module_names
        ):
            found.append(line)
    return found


@pytest.mark.slow
def test_device_path_uses_nothing_newer_than_3_10() -> None:
    assert not newer_than_3_10(*(SOURCES[name] for name in DEVICE_PATH if name in SOURCES))


@pytest.mark.parametrize(
    "source", ["from enum import StrEnum", "import tomllib", "from datetime import UTC", "import math\nmath.cbrt(8)"]
)
def test_what_is_newer_than_3_10_is_found(tmp_path: Path, source: str) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(source, encoding="utf-8")
    assert len(newer_than_3_10(planted)) == 1


def test_what_3_10_has_is_not(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text("import tensorrt_nobody_has\nfrom enum import Enum\n", encoding="utf-8")
    assert not newer_than_3_10(planted)
