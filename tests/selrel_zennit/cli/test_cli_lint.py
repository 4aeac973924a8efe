"""selrel lint as a user calls it."""

import json

import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure
from torchvision.models.video.swin_transformer import SwinTransformer3d

from selrel_zennit import ClipSpec
from selrel_zennit.cli.lint import lint


def transformer():
    """Return a Swin of two stages, as a factory for --model."""
    torch.manual_seed(0)
    model = SwinTransformer3d([2, 4, 4], 8, [1, 1], [2, 4], [2, 2, 2], num_classes=5)
    model.spec = ClipSpec(frames=4, short_side=16, crop=16)
    for name, parameter in model.named_parameters():
        if "attn" in name and parameter.ndim > 1:
            parameter.data *= 12  # so that attention matters beside what goes around it
    return model.eval().requires_grad_(False)


def failing_transformer():
    """Return the same with biases that take relevance."""
    model = transformer()
    for name, parameter in model.named_parameters():
        if name.endswith("attn.proj.bias"):
            parameter.fill_(0.1)
    return model


@pytest.fixture
def run():
    def call(*arguments):
        return CliRunner().invoke(lint, list(arguments), standalone_mode=False)

    return call


def test_a_sound_network_passes(run):
    result = run()
    assert result.exception is None
    assert result.return_value == 0
    assert "\nconv1    Conv3d     ZBox   1.0000  1.0000     -\n" in result.output
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


@pytest.mark.parametrize("factory", ["transformer", "failing_transformer"])
def test_what_a_transformer_keeps_is_said_wherever_the_result_is(run, factory, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    figures = tmp_path / "lint.json"
    model = ("--model", f"test_cli_lint:{factory}", "--weights", "own", "--method", "lrp_epsilon_plus")
    result = run(*model, "--picture", str(tmp_path / "lint.svg"), "--json", str(figures))
    report = json.loads(figures.read_text())
    assert result.return_value == (0 if report["passed"] else 1)
    assert report["passed"] == (factory == "transformer")
    assert report["absorbed"] > 0.1
    total = (
        f"{report['conserved']:.2%} of the relevance arrives at the clip, "
        f"{report['absorbed']:.2%} kept by the softmax's constant and class tokens"
    )
    assert f"lrp_epsilon_plus: {total}\n" in result.output
    assert (f"findings, {total}\n" in result.output) == (factory == "failing_transformer")
    lines = {line.split()[0]: line for line in result.output.splitlines() if line}
    softmax = [flow for flow in report["flows"] if flow["rule"] == "SoftmaxTaylor"]
    assert len(softmax) == 2
    for flow in report["flows"]:
        assert lines[flow["module"]].endswith("  kept") == (flow in softmax)
        # Wide enough for the longest: the columns stand below each other.
        assert lines[flow["module"]].index(f" {flow['kind']} ") == lines["module"].index(" kind ")
        assert lines[flow["module"]].index(f" {flow['rule'] or '-'} ") == lines["module"].index(" rule ")
    (figure,) = drawn
    (axes,) = figure.axes
    assert total in axes.get_title()
    assert [round(bar.get_x() + 0.45) for bar in axes.containers[1]] == [
        place for place, flow in enumerate(reversed(report["flows"])) if flow in softmax
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "gradcam"], "gradcam places no rules that conserve relevance"),
        (["--method", "guided_backprop"], "guided_backprop places no rules that conserve relevance"),
        (["--method", "dtd_contrastive"], "relevance of dtd_contrastive sums to 0"),
        (["--picture", "lint.gif"], "give a name that ends in .png or .svg"),
        (["--threshold", "0"], "threshold is a share"),
        (["nowhere.mp4"], "nowhere.mp4"),
    ],
)
def test_bad_input(run, arguments, message):
    result = run(*arguments)
    assert message in str(result.exception)
