"""A GPU test that would be skipped fails under SELREL_REQUIRE_CUDA=1. Held against a torch without a device."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"

NO_DEVICE = """
def manual_seed(seed):
    pass

class cuda:
    is_available = staticmethod(lambda: False)
"""
ONE_DEVICE = NO_DEVICE.replace("False", "True")
TESTS = """
import pytest

@pytest.mark.cuda
def test_on_gpu():
    pass

@pytest.mark.cuda
def test_on_gpu_skips_itself():
    pytest.skip("driver too old")

@pytest.mark.cuda
@pytest.mark.xfail(reason="known")
def test_on_gpu_is_known_to_fail():
    raise AssertionError

def test_elsewhere():
    pytest.skip("no such file")
"""
WHOLE_FILE = """
import pytest

pytest.importorskip("a_module_nobody_has")
pytestmark = pytest.mark.cuda

def test_on_gpu():
    pass
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A small project with this one's conftest, its own stand-in for torch, and neither environment variable set."""
    monkeypatch.delenv("SELREL_REQUIRE_CUDA", raising=False)
    monkeypatch.delenv("SELREL_DATA", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeini("[pytest]\nmarkers =\n  cuda: needs a GPU\n  repo: -\npythonpath = .\naddopts = --strict-markers")
    pytester.makeconftest(CONFTEST.read_text(encoding="utf-8"))
    return pytester


@pytest.mark.parametrize(
    ("torch", "required", "expected"),
    [
        (NO_DEVICE, False, {"skipped": 4}),
        (NO_DEVICE, True, {"skipped": 1, "errors": 3}),
        (ONE_DEVICE, False, {"passed": 1, "skipped": 2, "xfailed": 1}),
        (ONE_DEVICE, True, {"passed": 1, "skipped": 1, "failed": 1, "xfailed": 1}),
    ],
    ids=["no device", "no device, required", "a device", "a device, required"],
)
def test_no_gpu_test_is_lost(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, torch: str, required: bool, expected: dict[str, int]
) -> None:
    project.makepyfile(torch=torch, test_gpu=TESTS)
    if required:
        monkeypatch.setenv("SELREL_REQUIRE_CUDA", "1")
    result = project.runpytest_subprocess("-rs")
    result.assert_outcomes(**expected)
    if required:
        reason = "needs a CUDA device" if torch == NO_DEVICE else "driver too old"
        result.stdout.fnmatch_lines([f"SELREL_REQUIRE_CUDA=1, but this GPU test would be skipped: *{reason}"])


@pytest.mark.parametrize(("required", "expected"), [(False, {"skipped": 1}), (True, {"errors": 1})])
def test_no_file_of_gpu_tests_is_lost(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, required: bool, expected: dict[str, int]
) -> None:
    project.makepyfile(torch=ONE_DEVICE, test_gpu=WHOLE_FILE)
    if required:
        monkeypatch.setenv("SELREL_REQUIRE_CUDA", "1")
    project.runpytest_subprocess().assert_outcomes(**expected)


@pytest.mark.parametrize(
    ("value", "expected", "message"),
    [
        (None, {"skipped": 1}, "*SELREL_DATA is unset*"),
        ("nowhere", {"errors": 1}, "*SELREL_DATA=nowhere is not a folder*"),
        (".", {"errors": 1}, "*SELREL_DATA lacks*arm_wrestling.mp4*"),
    ],
)
def test_real_clips_skip_only_when_the_folder_is_unset(
    project: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    value: str | None,
    expected: dict[str, int],
    message: str,
) -> None:
    project.makepyfile(test_clips="def test_clips(real_clips):\n    pass\n")
    if value is not None:
        monkeypatch.setenv("SELREL_DATA", value)
    result = project.runpytest_subprocess("-rs")
    result.assert_outcomes(**expected)
    result.stdout.fnmatch_lines([message])
