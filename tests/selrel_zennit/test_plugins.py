"""Methods, models and commands of other packages: by entry points, and by "package.module:name"."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import selrel_zennit as sr
from networks import few_layers
from selrel_zennit.cli import main

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "selrel-tiny"
version = "0.1"

[project.entry-points."selrel.methods"]
tiny_method = "selrel_tiny.all:tiny_method"
missing_method = "selrel_tiny.nowhere:method"
silent_method = "selrel_tiny.all:Ones"

[project.entry-points."selrel.models"]
tiny_model = "selrel_tiny.all:tiny_model"

[project.entry-points."selrel.commands"]
tiny = "selrel_tiny.all:tiny"
broken = "selrel_tiny.nowhere:command"
"""

MODULE = '''
import click
import torch
from torch import nn

import selrel_zennit as sr
from selrel_zennit.attribution import VideoAttributor


class Ones(VideoAttributor):
    records = False

    def __init__(self, model, value=1.0):
        super().__init__(model)
        self.value = value

    def forward(self, input, attr_output_fn):
        with torch.no_grad():
            logits = self.model(input)
            attr_output_fn(logits)
        return logits, torch.full_like(input, self.value)


@sr.register_method("tiny_method", summary="ones everywhere", citation="a test", passes=1.0, compilable=False)
def tiny_method(model, value: float = 1.0):
    return Ones(model, value)


SPEC = sr.ClipSpec(frames=4, crop=16, short_side=16)


@sr.register_model("tiny_model", summary="a tiny network", citation="a test", classes=3)
def tiny_model(num_classes=3, spec=None):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 16 * 16, num_classes))
    model.spec = SPEC
    return model


@click.command()
def tiny():
    """Say hello."""
    click.echo("hello from a plugin")
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which a small package with entry points was installed."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (source / "selrel_tiny").mkdir()
    (source / "selrel_tiny" / "__init__.py").touch()
    (source / "selrel_tiny" / "all.py").write_text(MODULE, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return target


def selrel(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from selrel_zennit.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_installed_package_brings_methods_models_and_commands(site: Path, tmp_path: Path) -> None:
    helped = selrel(site, "--help", cwd=tmp_path)
    assert "tiny" in helped.stdout
    assert "A command of selrel-tiny." in helped.stdout
    assert selrel(site, "tiny", cwd=tmp_path).stdout == "hello from a plugin\n"
    broken = selrel(site, "broken", cwd=tmp_path)
    assert broken.returncode == 2
    assert "selrel broken of selrel-tiny cannot be imported" in broken.stderr
    assert broken.stderr.count("\n") == 1

    listed = selrel(site, "list", "methods", cwd=tmp_path)
    assert "tiny_method" in listed.stdout
    assert "ones everywhere" in listed.stdout
    assert "selrel-tiny: missing_method cannot be imported" in listed.stderr
    assert "did not register 'silent_method'" in listed.stderr
    assert "tiny_model" in selrel(site, "list", "models", cwd=tmp_path).stdout

    made = selrel(
        site, "explain", "--model", "tiny_model", "--weights", "random", "--method", "tiny_method",
        "--option", "value=2", "--out", "out", cwd=tmp_path,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["clips"][0]["relevance_sum"] == pytest.approx(2 * 3 * 4 * 16 * 16)
    missing = selrel(site, "explain", "--method", "missing_method", cwd=tmp_path)
    assert missing.returncode == 2
    assert "missing_method cannot be imported" in missing.stderr


OWN = """
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus
import selrel_zennit as sr

def build(model, scale=1.0):
    return Gradient(model)

composite = EpsilonPlus()
number = 3

def bad(model):
    return 4
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_method_module.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_method_module", raising=False)


@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("own_method_module:build", "gradient"),
        ("own_method_module:composite", "lrp_epsilon_plus"),
        ("own_method_module:EpsilonPlus", "lrp_epsilon_plus"),
        ("zennit.attribution:Gradient", "gradient"),
    ],
)
def test_a_method_is_named_by_its_module(own: None, name: str, same_as: str) -> None:
    model = few_layers()
    clip = model.spec.clip(__import__("numpy").random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype("uint8"))
    found, expected = sr.explain(model, clip, name), sr.explain(model, clip, same_as)
    assert abs(found.relevance - expected.relevance).max() <= 1e-6 * abs(expected.relevance).max()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("own_method_module:nothing", "has no 'nothing'"),
        ("own_method_module:bad", "returned int"),
        ("own_method_module:number", "cannot be called"),
        ("no_such_module:name", "cannot import no_such_module"),
    ],
)
def test_what_a_name_may_not_be(own: None, name: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(sr.InputError, match=says):
        sr.build_method(name, few_layers())
    assert main(["explain", "--method", name, "--out", "out"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_options_go_to_the_function(own: None) -> None:
    with pytest.raises(sr.InputError, match=r"cannot be called .*'weight'"):
        sr.build_method("own_method_module:build", few_layers(), weight=2)
    sr.build_method("own_method_module:build", few_layers(), scale=2)
