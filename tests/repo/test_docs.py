"""The documentation builds without a warning, what its pages show is run, and its notebooks run and hold no outputs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
from zennit.composites import COMPOSITES

import selrel_zennit as sr
from repo.pages import missing_options, run_page, unexplained
from repo.tree import ROOT, project_files
from selrel_zennit.cli import COMMANDS

DOCS = ROOT / "docs"
PAGES = [path for path in project_files(DOCS) if path.suffix == ".md"]
NOTEBOOKS = [path for path in project_files(DOCS) if path.suffix == ".ipynb"]
# What they show takes long: they start `selrel`, or export.
SLOW = (
    *("tutorial.md", "choose-a-method.md", "choose-a-preset.md", "compare-and-check.md", "conservation.md"),
    *("your-video.md", "calibrate.md", "motion.md", "extend.md", "figures.md", "train.md", "evaluate.md"),
)
LARGEST_PICTURE = 300_000

# Runs the code cells in one namespace, each under its own name in a traceback. No Jupyter.
RUN_NOTEBOOK = """
import json, sys
namespace = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)
"""


def named(path: Path) -> str:
    return path.relative_to(DOCS).as_posix()


def run_notebook(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN_NOTEBOOK, path],
        cwd=folder,
        env=os.environ | {"MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built. A link that leads nowhere, a page in no list of contents, a bad docstring: all are warnings."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", out / "trees", DOCS, out / "html"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out / "html"


def slow_ones(paths: list[Path], names: Sequence[str]) -> list[Any]:
    assert set(names) <= {path.name for path in paths}
    return [pytest.param(path, marks=pytest.mark.slow) if path.name in names else path for path in paths]


@pytest.mark.parametrize("page", slow_ones(PAGES, SLOW), ids=named)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A page may register methods and composites; other tests must not see them.
    with patch.dict(sr.METHODS), patch.dict(sr.MODELS), patch.dict(COMPOSITES):
        run_page(page)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_left_out_says_why(page: Path) -> None:
    assert not unexplained(page)


def test_named_options_exist() -> None:
    assert not missing_options("\n".join(page.read_text(encoding="utf-8") for page in PAGES))


@pytest.mark.parametrize("notebook", slow_ones(NOTEBOOKS, ("motion_share.ipynb", "planted_cause.ipynb")), ids=named)
def test_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    done = run_notebook(notebook, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=named)
def test_notebook_holds_no_outputs(notebook: Path) -> None:
    assert not leftovers(json.loads(notebook.read_text(encoding="utf-8")))


def leftovers(notebook: dict[str, Any]) -> list[str]:
    """Return what a run, or an editor, has left in a notebook."""
    found = [
        f"cell {number}: {key}"
        for number, cell in enumerate(notebook["cells"])
        for key in ("outputs", "execution_count", "metadata", "attachments")
        if cell.get(key)
    ]
    return found + sorted(set(notebook["metadata"]) - {"kernelspec", "language_info"})


def test_a_wrong_page_fails(tmp_path: Path) -> None:
    page = tmp_path / "wrong.md"
    page.write_text('```python\nprint("one")\n```\n```text\ntwo\n```\n', encoding="utf-8")
    with pytest.raises(AssertionError, match=r"wrong\.md, line 4"):
        run_page(page)
    page.write_text(
        "```py\n1\n```\n<!-- not run -->\n```bash\nls\n```\n```bash\npip install x\n```\n", encoding="utf-8"
    )
    assert len(unexplained(page)) == 3


def test_there_are_pages_and_notebooks() -> None:
    assert len(PAGES) >= 10
    assert len(NOTEBOOKS) >= 3


def test_a_failing_notebook_fails(tmp_path: Path) -> None:
    cells = [{"cell_type": "code", "source": ["x = 1\n", "y = z"], "outputs": ["1"], "execution_count": 3}]
    broken = tmp_path / "broken.ipynb"
    broken.write_text(json.dumps({"cells": cells, "metadata": {"widgets": {}}}), encoding="utf-8")
    assert "name 'z' is not defined" in run_notebook(broken, tmp_path).stderr
    assert leftovers(json.loads(broken.read_text(encoding="utf-8"))) == [
        "cell 0: outputs",
        "cell 0: execution_count",
        "widgets",
    ]


def test_site_has_every_method(site: Path) -> None:
    page = (site / "howto/choose-a-method.html").read_text(encoding="utf-8")
    assert not [name for name in sr.METHODS if f">{name}<" not in page]


def test_site_has_every_command(site: Path) -> None:
    page = (site / "reference/cli.html").read_text(encoding="utf-8")
    assert not [name for name in COMMANDS if f"Usage: selrel {name}" not in page]


@pytest.mark.parametrize(
    "package",
    [
        "selrel_zennit",
        "selrel_zennit.attribution",
        "selrel_zennit.metrics",
        "selrel_zennit.evaluate",
        "selrel_zennit.training",
        "selrel_zennit.synthetic",
        "selrel_kernels",
    ],
)
def test_site_has_every_public_name(site: Path, package: str) -> None:
    page = "".join(path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html"))
    names = importlib.import_module(package).__all__
    missing = [name for name in names if not re.search(rf"(?:id=\"|>)[\w.]*\b{name}[\"<]", page)]
    assert not missing


def test_pictures_are_small() -> None:
    sizes = {named(path): path.stat().st_size for path in project_files(DOCS / "images")}
    assert not {name: size for name, size in sizes.items() if size > LARGEST_PICTURE}


def test_docstrings_become_text(generate: ModuleType) -> None:
    lines = ["Return Σ|R| of ``x``s, see `selrel list`.", "", "name     what", "other    what_"]
    assert generate.docstring(lines) == [
        r"Return Σ\|R\| of ``x``\ s, see ``selrel list``.",
        "",
        "::",
        "",
        "   name     what",
        "   other    what_",
        "",
    ]


def test_an_unknown_part_is_refused(generate: ModuleType) -> None:
    with pytest.raises(KeyError, match="poems"):
        generate.fill("text\n<!-- generated: poems -->\n")
