"""What the README shows is run and gives what it says. Its conventions are told in readme.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from repo.pages import differences, missing_options, named_options, run_bash, run_page, run_python, unexplained
from repo.readme import README, blocks, set_up_commands


def text() -> str:
    return README.read_text(encoding="utf-8")


@pytest.mark.slow
def test_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_page(README) >= 3, "the README shows two set-up commands and some Python"


def test_two_commands_set_everything_up() -> None:
    explain, test = set_up_commands(text())
    assert explain == "pip install . && selrel explain --out out"
    assert test == "pip install '.[test]' && pytest -n 2 --dist loadfile"


def test_every_block_left_out_says_why() -> None:
    assert not unexplained(README)


def test_named_options_exist() -> None:
    assert "explain" in named_options(text())
    assert not missing_options(text())


SAMPLE = """\
# Title
<!-- set-up -->
```bash
pip install . && echo one   # nothing
```
Text with `selrel run F.onnx --runner R [--out DIR]`.
<!-- not run: needs a GPU -->
```bash
selrel bench \\
  --budget=0.5
```
```python
x = 1.00004
print("x is", x)
```
```text
x is 1.0
```
"""


def test_blocks_are_read() -> None:
    found = blocks(SAMPLE)
    assert [(block.language, block.mark, block.reason, block.line) for block in found] == [
        ("bash", "set-up", "", 3),
        ("bash", "not run", "needs a GPU", 8),
        ("python", "", "", 12),
        ("text", "", "", 16),
    ]
    assert set_up_commands(SAMPLE) == ["pip install . && echo one   # nothing"]
    assert named_options(SAMPLE) == {"run": {"--runner", "--out"}, "bench": {"--budget"}}
    assert run_bash(found[0].text) == "one\n"
    assert not differences(found[3].text, run_python(found[2], {}, README))


@pytest.mark.parametrize(
    "broken", ["```bash\nls\n", "<!-- set-up -->\ntext\n```bash\nls\n```\n", "<!-- not run: x -->"]
)
def test_a_broken_readme_is_refused(broken: str) -> None:
    with pytest.raises(ValueError, match="line"):
        blocks(broken)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("x is 1.0", "x is 1.002"),
        ("x is 1.0", "y is 1.0"),
        ("one\ntwo", "one"),
        ("c3d 16", "c4d 16"),
        ("-1.0", "1.0"),
        ("0.0", "0.1"),
    ],
)
def test_another_output_is_found(shown: str, printed: str) -> None:
    assert differences(shown, printed)


@pytest.mark.parametrize(("shown", "printed"), [("a 1.0000 b", "a 1.0004 b  \n"), ("1e-6", "1.0005e-06"), ("n", "n\n")])
def test_the_same_output_passes(shown: str, printed: str) -> None:
    assert not differences(shown, printed)


def test_a_failing_block_fails() -> None:
    with pytest.raises(AssertionError, match="no_such_command"):
        run_bash("no_such_command | cat\n")
