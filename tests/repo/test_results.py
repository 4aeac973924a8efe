"""The README's tables are what the results say; a figure that was typed or grown old is found."""

from __future__ import annotations

import sys


def test_tables_of_the_readme_are_generated(readme_tables):
    found = []
    for page in readme_tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert readme_tables.filled(text) == text, "run python benchmarks/readme_tables.py"
        found += [match[2] for match in readme_tables.BLOCK.finditer(text)]
    assert sorted(found) == sorted(readme_tables.TABLES)


def test_pages_of_results_are_generated(readme_tables):
    tables = sys.modules["tables"]
    for name, table in tables.TABLES.items():
        page = (tables.RESULTS / f"{name}.md").read_text(encoding="utf-8")
        assert page == table(readme_tables.read(name)), f"run python benchmarks/tables.py {name}"


def test_a_typed_figure_is_found(readme_tables):
    text = readme_tables.PAGES[0].read_text(encoding="utf-8")
    block = next(readme_tables.BLOCK.finditer(text))
    changed = text.replace(block[0], block[0].replace("<!-- end -->", "| made up | 1 |\n<!-- end -->"))
    assert changed != text
    assert readme_tables.filled(changed) == text
