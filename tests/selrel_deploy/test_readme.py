"""The Python of deploy/README.md runs, from top to bottom, on the embedded model and clip."""

import re
from pathlib import Path

import pytest

import selrel_zennit as sr
from selrel_deploy.runners import RUNNERS
from selrel_zennit.synthetic.embedded import demo_frames

README = (Path(__file__).parents[2] / "deploy" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_code_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sr, "read_frames", lambda path, count: demo_frames()[:count])
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block, namespace)
    said = capsys.readouterr().out
    assert "convolutions" in said
    assert "OnnxRuntimeRunner(CPUExecutionProvider" in said
    assert said.splitlines()[-1] == "exact"


def test_every_runner_is_listed():
    assert set(re.findall(r"^\| `(\w+)` \| an? ", README, re.MULTILINE)) == set(RUNNERS)
