"""selrel train as a user calls it."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout

import pytest

from selrel_zennit.cli import main
from training_videos import write_videos

SMALL = ("--crop", "32", "--frames", "8", "--stride", "2", "--epochs", "1", "--threads", "1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    videos = write_videos(folder / "videos", train=2, test=1)
    (videos / "train/down/bad.mp4").write_bytes(b"no video")
    figures = folder / "figures.json"
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(["train", str(videos), "--out", str(folder / "out"), "--json", str(figures), *SMALL])
    assert code == 0, err.getvalue()
    return folder, out.getvalue(), err.getvalue(), json.loads(figures.read_text())


def test_what_it_says_and_writes(trained):
    folder, out, err, figures = trained
    assert "left out: train/down/bad.mp4" in err
    assert f"best weights: {figures['best']['accuracy']:.1%} of the held-out videos are right" in out
    assert "chosen on these: test" in out
    assert [entry["name"] for entry in figures["skipped"]] == ["train/down/bad.mp4"]
    assert json.loads((folder / "out/training.json").read_text())["best"] == figures["best"]


def test_explain_takes_its_weights_as_they_are(trained):
    folder, *_ = trained
    video, weights = folder / "videos/test/right/0.mp4", folder / "out/best.safetensors"
    options = ["--model", "small3d", "--weights", str(weights), "--method", "gradient", "--target", "right"]
    assert main(["explain", str(video), *options, "--no-frozen", "--out", str(folder / "explained")]) == 0
    summary = json.loads((folder / "explained/summary.json").read_text())
    assert summary["target_name"] == "right"
    assert {name for name, _ in summary["top5"]} == {"down", "right", "still"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "nowhere: no such folder or file"),
        (("DATA", "--classes", "down,rigth"), "has no class 'rigth' (did you mean 'right'?)"),
        (("DATA", "--classes", "down"), "has one class, 'down'"),
        (("DATA", "--validation", "val"), "has no split 'val'"),
        (("DATA", "--model", "smal3d"), "no model named 'smal3d'"),
        (("DATA", "--crop", "32", "--short-side", "24"), "these clips cannot be: crop 32 does not fit"),
        (("DATA", "--short-side", "wide"), "--short-side 'wide': give pixels"),
        (("DATA", "--learning-rate", "0"), "the learning rate must be a number above 0"),
        (("DATA", "--initial", "nothing.pt"), "nothing.pt"),
        (("DATA", "--device", "cdua"), "--device 'cdua'"),
        (("DATA", "--seed", "3", *SMALL), "belongs to another training, with other seed"),
    ],
)
def test_bad_input_is_one_line(trained, arguments, said, capsys):
    folder, *_ = trained
    given = [str(folder / "videos") if name == "DATA" else name for name in arguments]
    assert main(["train", *given, "--out", str(folder / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
