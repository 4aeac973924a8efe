"""Nothing in the project ties it to one machine, is too large, or says its version in two ways."""

from __future__ import annotations

import ast
import re
import subprocess
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import selrel_zennit
from repo.tree import ROOT, SOURCES, project_files

LARGEST = 4 * 2**20
LONGEST = 400
# Run by `python -m` alone.
PROGRAMS = {"selrel_kernels.build"}

# Each pattern has a class of one letter where a plain one would do: this file must not match itself.
FORBIDDEN = {
    "a path in somebody's home": r"(?<![\w.:])/(?:hom[e]/\w|User[s]/\w|roo[t]/)|[A-Z]:\\User[s]\\",
    "a path on one machine": r"(?<![\w.:/~$})-])/(?:tm[p]|wor[k]|works[p]ace|mn[t]|dat[a]|scrat[c]h|opt)/\w",
    "the address of a package registry": r"(?i)\binde[x][-_]url|PIP_INDE[X]|UV_INDE[X]|/sim[p]le/?(?=[\s'\"]|$)",
    "an address inside a private network": r"\b(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2,3}:\d+",
    "a credential": r"(?i)\b(?:api_?ke[y]|passwor[d]|secre[t]_key|access_toke[n])\b\s*[=:]\s*['\"]\w{8,}",
}
BINARY = {".safetensors", ".npz", ".png", ".mp4", ".gif", ".onnx", ".jpg"}
FILES = project_files()


def faults(text: str) -> list[str]:
    """Return what in a text ties it to one machine."""
    return [f"{what}: {found[0]!r}" for what, pattern in FORBIDDEN.items() if (found := re.search(pattern, text))]


def test_no_file_names_a_machine() -> None:
    found = {
        str(path.relative_to(ROOT)): said
        for path in FILES
        if path.suffix not in BINARY and (said := faults(path.read_text(encoding="utf-8")))
    }
    assert not found


@pytest.mark.parametrize(
    "parts",
    [
        ("/ho", "me/ann/clip.mp4"),
        ("open('/roo", "t/.cache')"),
        ("C:\\Use", "rs\\ann"),
        ("see /tm", "p/out"),
        ("pip install --index", "-url https://example.org"),
        ("PIP_IND", "EX_URL=x"),
        ("https://pypi.example.org/simp", "le/"),
        ("http://10.0.0.", "1:8080"),
        ("api_k", "ey = 'abcdefgh123'"),
    ],
)
def test_what_names_a_machine_is_found(parts: tuple[str, str]) -> None:
    assert faults("".join(parts))


@pytest.mark.parametrize(
    "text",
    ["http://127.0.0.1:8000", "https://github.com/work/data/x", "out/overlay.mp4", "../shared/data", "$tmp/work/x"],
)
def test_what_names_none_is_not(text: str) -> None:
    assert not faults(text)


def test_no_file_is_large() -> None:
    assert not {str(path.relative_to(ROOT)): size for path in FILES if (size := path.stat().st_size) > LARGEST}


def test_no_source_file_is_long() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in FILES
        if path.suffix in {".py", ".cu"}
    }
    assert not {name: count for name, count in lines.items() if count > LONGEST}


def test_version_is_said_once() -> None:
    version = selrel_zennit.__version__
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0] == "Unreleased"
    assert version in headings


def test_ci_script_is_sound() -> None:
    done = subprocess.run(["bash", "-n", str(ROOT / ".ci/run")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def required(name: str, extras: frozenset[str], seen: set[str]) -> None:
    """Add to ``seen`` the names of all that an installed distribution asks for, and what that asks for."""
    try:
        wanted = requires(name) or []
    except PackageNotFoundError:
        return
    for text in wanted:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        key = requirement.name.lower().replace("_", "-")
        if key not in seen:
            seen.add(key)
            required(requirement.name, frozenset(requirement.extras), seen)


def test_one_distribution_brings_cv2() -> None:
    """opencv-python and its like are the same module as the headless one; whichever is installed last wins."""
    seen: set[str] = set()
    required("selrel-zennit", frozenset({"", "test"}), seen)
    assert {name for name in seen if name.startswith("opencv")} == {"opencv-python-headless"}
    assert "zennit" in seen
    assert "grad-cam" in seen


def test_cv2_needs_no_display() -> None:
    """OpenCV's binary links to no library that a machine without a screen lacks."""
    import cv2

    folder = Path(cv2.__file__).parent
    linked = b"".join(path.read_bytes() for path in folder.glob("*.so"))
    assert not re.findall(rb"\0(libGL|libX11|libxcb|libQt\d?\w+|libgtk[\w.-]*)\.so", linked)


def prints(source: str) -> list[int]:
    """Return the lines of a source at which it prints, but for those under ``if __name__`` and in a ``main``."""
    lines: list[int] = []
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            lines.append(node.lineno)
        program = isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        if not program and not (isinstance(node, ast.FunctionDef) and node.name == "main"):
            waiting += ast.iter_child_nodes(node)
    return sorted(lines)


def test_libraries_do_not_print() -> None:
    """Command lines do: the rooms called cli, what starts with ``-m``, and what answers another process."""
    assert prints("def f():\n    print(1)\ndef main():\n    print(2)\nif __name__ == '__main__':\n    print(3)") == [2]
    found = {
        name: lines
        for name, path in SOURCES.items()
        if ".cli" not in name and name not in PROGRAMS and (lines := prints(path.read_text(encoding="utf-8")))
    }
    assert not found
