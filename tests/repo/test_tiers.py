"""Slow tests are left out unless they are asked for, and each file of tests has one that is not slow."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from repo.tree import ROOT, project_files

FILES = [path for path in project_files(ROOT / "tests") if path.name.startswith("test_")]
CONFTEST = ROOT / "tests" / "conftest.py"

TESTS = """
import pytest

def test_fast():
    pass

@pytest.mark.slow
def test_slow():
    pass

@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_both(number):
    pass
"""


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        ((), 2),
        (("test_tiers.py",), 2),
        (("-m", "not repo"), 2),
        (("-m", "slow"), 2),
        (("-m", "slow or not slow"), 4),
        (("test_tiers.py::test_slow",), 1),
    ],
)
def test_slow_tests_run_when_they_are_asked_for(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], passed: int
) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeini("[pytest]\nmarkers =\n  cuda: -\n  repo: -\n  slow: -\naddopts = --strict-markers")
    pytester.makeconftest(CONFTEST.read_text(encoding="utf-8"))
    pytester.makepyfile(test_tiers=TESTS)
    pytester.runpytest_subprocess(*arguments).assert_outcomes(passed=passed)


def all_slow(source: str) -> bool:
    """Say whether a file of tests has none outside the slow ones."""
    tree = ast.parse(source)
    if any(
        isinstance(node, ast.Assign) and ast.unparse(node).startswith("pytestmark = pytest.mark.slow")
        for node in tree.body
    ):
        return True
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return all(any(ast.unparse(mark) == "pytest.mark.slow" for mark in test.decorator_list) for test in tests)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_has_a_test_that_is_not_slow(path: Path) -> None:
    assert not all_slow(path.read_text(encoding="utf-8"))


def test_a_file_of_slow_tests_alone_is_found() -> None:
    slow = "@pytest.mark.slow\ndef test_a():\n    pass\n"
    assert all_slow(slow)
    assert all_slow("pytestmark = pytest.mark.slow\n\ndef test_a():\n    pass\n")
    assert not all_slow(slow + "\ndef test_b():\n    pass\n")


def test_ci_runs_the_slow_tests_as_well() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert "pytest -n 2 --dist loadfile -m slow" in lines
    assert [line for line in lines if "$scratch/zennit" in line and "pytest" in line]
    # Slow ones that are named run without a mark.
    assert any("test_equal_to_rules_placed_by_hand" in line for line in lines)
