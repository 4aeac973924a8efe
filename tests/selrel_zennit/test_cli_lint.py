"""selrel lint as a user calls it."""

import json

import pytest
from click.testing import CliRunner

from selrel_zennit.cli.lint import lint


@pytest.fixture
def run():
    def call(*arguments):
        return CliRunner().invoke(lint, list(arguments), standalone_mode=False)

    return call


def test_a_sound_network_passes(run):
    result = run()
    assert result.exception is None
    assert result.return_value == 0
    assert "conv1    Conv3d           ZBox" in result.output
    assert result.output.endswith("of the relevance arrives at the clip\nnothing found\n")


def test_a_fault_is_named_drawn_and_written(run, tmp_path):
    picture, figures = tmp_path / "lint.png", tmp_path / "lint.json"
    result = run("--method", "lrp_epsilon_plus", "--picture", str(picture), "--json", str(figures))
    assert result.return_value == 1
    assert "bias: conv5b: its bias takes" in result.output
    assert "check failed" in result.output
    report = json.loads(figures.read_text())
    assert report["method"] == "lrp_epsilon_plus"
    assert not report["passed"]
    assert {finding["kind"] for finding in report["findings"]} == {"bias"}
    assert len(report["flows"]) == 29
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run("--method", "lrp_epsilon_plus", "--option", "zero_params=bias").return_value == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "gradcam"], "gradcam places no rules"),
        (["--picture", "lint.gif"], "give a name that ends in .png or .svg"),
        (["--threshold", "0"], "threshold is a share"),
        (["nowhere.mp4"], "nowhere.mp4"),
    ],
)
def test_bad_input(run, arguments, message):
    result = run(*arguments)
    assert message in str(result.exception)
