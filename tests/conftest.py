"""What every test shares: the header line with versions, the real clips, the rule that a GPU test is never lost."""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Generator
from pathlib import Path
from types import ModuleType

import pytest

# Tests side by side (-n) share the cores; a thread each is faster than all of them for everyone. Before torch counts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REAL_CLIPS = {
    "cricket_shot": "v_CricketShot_g04_c01_rgb.gif",
    "arm_wrestling": "arm_wrestling.mp4",
    "pool_cleaning": "pool_cleaning.mp4",
}


def cuda_is_required() -> bool:
    """Say whether a skipped GPU test is a failure in this run."""
    return os.environ.get("SELREL_REQUIRE_CUDA") == "1"


def pytest_report_header() -> list[str]:
    """Name the versions under test, and where they were found: the log of a run proves what it ran on."""
    lines = []
    for name, module in (("selrel-zennit", "selrel_zennit"), ("zennit", "zennit"), ("torch", "torch")):
        spec = importlib.util.find_spec(module)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        lines.append(f"{name} {version} ({spec.origin if spec else 'not found'})")
    lines.append(f"SELREL_DATA={os.environ.get('SELREL_DATA', '')} SELREL_REQUIRE_CUDA={int(cuda_is_required())}")
    return lines


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of the repository itself: they do not depend on the version of Zennit. Leave out slow tests.

    An ``-m`` that speaks of them decides (``-m "slow or not slow"`` takes all), and a test that is named is run.
    """
    repo = Path(__file__).parent / "repo"
    for item in items:
        if repo in item.path.parents:
            item.add_marker("repo")
    if "slow" in config.option.markexpr or any("::" in name for name in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_collection_finish() -> None:
    """Leave what imports have made out of garbage collection: looking at all of torch, again and again, takes long."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give each test the same random numbers, alone or in any order; skip a ``cuda`` test where there is no device."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under SELREL_REQUIRE_CUDA=1, turn a skip of a ``cuda`` test into a failure, whatever the reason given."""
    report = yield
    if cuda_is_required() and item.get_closest_marker("cuda") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"SELREL_REQUIRE_CUDA=1, but this GPU test would be skipped: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole file of GPU tests that skips itself when it is imported."""
    report = yield
    if (
        cuda_is_required()
        and report.outcome == "skipped"
        and isinstance(collector, pytest.Module)
        and "mark.cuda" in collector.path.read_text(encoding="utf-8")
    ):
        report.outcome = "failed"
        report.longrepr = f"SELREL_REQUIRE_CUDA=1, but this file of GPU tests skips itself: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real clips, named by SELREL_DATA. Unset: the test is skipped. Wrong: it fails."""
    value = os.environ.get("SELREL_DATA")
    if not value:
        pytest.skip("SELREL_DATA is unset: it names the folder of real clips")
    folder = Path(value).resolve()
    assert folder.is_dir(), f"SELREL_DATA={value} is not a folder"
    return folder


@pytest.fixture(scope="session")
def real_clips(data_dir: Path) -> dict[str, Path]:
    """Return the paths of three real videos by name: ``cricket_shot``, ``arm_wrestling``, ``pool_cleaning``."""
    clips = {name: data_dir / file for name, file in REAL_CLIPS.items()}
    missing = [path.name for path in clips.values() if not path.is_file()]
    assert not missing, f"SELREL_DATA lacks {', '.join(missing)}"
    return clips


@pytest.fixture
def readme_tables(monkeypatch: pytest.MonkeyPatch) -> Generator[ModuleType]:
    """Return the script that makes the READMEs' tables, as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    yield importlib.import_module("readme_tables")
    for name in ("readme_tables", "tables"):
        sys.modules.pop(name, None)
