"""Sphinx's settings. The pages are Markdown (MyST); what generate.py makes is put in at build time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import generate

import selrel_zennit

project = "selrel-zennit"
author = "The selrel-zennit authors"
copyright = "The selrel-zennit authors, BSD-3-Clause"
version = release = selrel_zennit.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
html_theme = "furo"
html_title = f"selrel-zennit {version}"


def _read_source(app: Any, docname: str, source: list[str]) -> None:
    is_notebook = Path(app.env.doc2path(docname)).suffix == ".ipynb"
    source[0] = generate.fill(generate.notebook(source[0]) if is_notebook else source[0])


def _process_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = generate.docstring(lines)


def _skip_member(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    # What typing.NamedTuple writes by itself says nothing; the class's docstring tells the fields.
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Any) -> None:
    """Connect the generators."""
    app.connect("source-read", _read_source)
    app.connect("autodoc-process-docstring", _process_docstring)
    app.connect("autodoc-skip-member", _skip_member)
