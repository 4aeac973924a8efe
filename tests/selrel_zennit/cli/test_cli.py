"""`selrel explain` and `selrel list` as a user calls them: what they write, what they say, what they refuse."""

import json

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import selrel_zennit as sr
from networks import plain_network, small_c3d
from selrel_zennit.cli import main
from selrel_zennit.clips.video import write_gif, write_mp4, write_png

FILES = {"overlay.mp4", "strip.png", "report.html", "explanation.npz", "summary.json"}
SMALL = ["--model", "networks:small_c3d", "--weights", "own"]


def moving(count=20, height=40, width=50):
    frames = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8).repeat(count, 0)
    for step in range(count):
        frames[step, 5:15, (step * 2) % (width - 10) : (step * 2) % (width - 10) + 10] = (255, 40, 0)
    return frames


@pytest.fixture
def video(tmp_path):
    write_mp4(tmp_path / "clip.mp4", moving(), 20)
    return str(tmp_path / "clip.mp4")


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", ["dtd", "gradient", "gradcam"])
def test_explain_writes_the_five_files(video, tmp_path, capsys, method):
    out = tmp_path / "a" / "out"
    assert main(["explain", video, *SMALL, "--method", method, "--out", str(out), "--n-sigma", "2"]) == 0
    assert {path.name for path in out.iterdir()} == FILES
    assert str(out) in capsys.readouterr().out

    summary = summary_of(out)
    assert summary["model"] == "networks:small_c3d"
    assert summary["weights"] == "own"
    assert (summary["method"], summary["preset"], summary["n_sigma"]) == (method, "default", 2)
    assert len(summary["top5"]) == 5
    assert sum(probability for _, probability in summary["top5"]) == pytest.approx(1)
    assert set(summary["clips"][0]["seconds"]) == {"read", "forward_backward", "select", "split", "frozen", "render"}

    with np.load(out / "explanation.npz") as arrays:
        found = dict(arrays)
    model = small_c3d()
    frames = sr.read_frames(video, count=16)
    expected = sr.explain(model, model.spec.clip(frames), method, selection=sr.MotionSelection(n_sigma=2))
    assert np.array_equal(found["frames"][0], model.spec.pixels(frames))
    for name in ("relevance", "motion_relevance", "mask", "logits", "target"):
        assert np.array_equal(found[name], getattr(expected, name)), name
    clip = summary["clips"][0]
    assert clip["motion_mass"] == pytest.approx(expected.motion_share().mass[0])
    assert clip["motion_area"] == pytest.approx(expected.motion_share().area[0])
    assert clip["relevance_sum"] == pytest.approx(float(expected.relevance.sum()), rel=1e-4)
    assert summary["target"] == expected.target[0] == expected.logits[0].argmax()
    # The video plays, and has one picture per frame.
    assert len(sr.read_frames(out / "overlay.mp4")) == 16
    assert cv2.imread(str(out / "strip.png")).std() > 10


def test_gif_and_folder_of_frames_give_the_same_as_the_frames(tmp_path):
    frames = moving()[:, :, :, :] // 64 * 64  # few colours: the GIF keeps them
    folder = tmp_path / "frames"
    folder.mkdir()
    for step, frame in enumerate(frames):
        write_png(folder / f"{step}.png", frame)
    write_gif(tmp_path / "clip.gif", frames, 20)
    for source in (folder, tmp_path / "clip.gif"):
        out = tmp_path / f"out_{source.name}"
        assert main(["explain", str(source), *SMALL, "--out", str(out)]) == 0
        with np.load(out / "explanation.npz") as arrays:
            assert np.abs(arrays["frames"][0].astype(int) - small_c3d().spec.pixels(frames)).max() <= 2


def test_json_goes_to_standard_output_alone(video, tmp_path, capsys):
    assert main(["explain", video, *SMALL, "--out", str(tmp_path / "out"), "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == summary_of(tmp_path / "out")
    assert main(["explain", video, *SMALL, "--out", str(tmp_path / "out"), "--json", str(tmp_path / "a.json")]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["method"] == "dtd"


def test_target_by_index_and_name(video, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(["walk", "run", "jump", "sit", "swim"]))
    named = [*SMALL, "--class-names", str(tmp_path / "names.txt"), "--out", str(tmp_path / "out")]
    for target, expected in (("2", 2), ("swim", 4)):
        assert main(["explain", video, *named, "--target", target]) == 0
        assert summary_of(tmp_path / "out")["target"] == expected
    assert summary_of(tmp_path / "out")["target_name"] == "swim"


def test_all_clips_explain_the_class_with_the_highest_mean_logit(tmp_path):
    rng = np.random.default_rng(2)
    frames = np.concatenate([rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8) // (part + 1) for part in range(3)])
    folder = tmp_path / "frames"
    folder.mkdir()
    for step, frame in enumerate(np.concatenate([frames, frames[:7]])):
        write_png(folder / f"{step:03d}.png", frame)
    assert main(["explain", str(folder), *SMALL, "--all-clips", "--out", str(tmp_path / "out")]) == 0
    summary = summary_of(tmp_path / "out")
    assert [clip["start"] for clip in summary["clips"]] == [0, 16, 32]
    model = small_c3d()
    with torch.no_grad():
        logits = model(torch.cat([model.spec.clip(frames, start) for start in (0, 16, 32)]))
    with np.load(tmp_path / "out" / "explanation.npz") as arrays:
        assert np.allclose(arrays["logits"], logits, rtol=1e-4, atol=1e-3)
        assert (arrays["target"] == int(logits.mean(0).argmax())).all()
    assert len(sr.read_frames(tmp_path / "out" / "overlay.mp4")) == 48
    assert any("frames 48…54" in note and "left out" in note for note in summary["notes"])


def test_start(video, tmp_path):
    assert main(["explain", video, *SMALL, "--start", "3", "--out", str(tmp_path / "out")]) == 0
    model = small_c3d()
    with np.load(tmp_path / "out" / "explanation.npz") as arrays:
        assert np.array_equal(arrays["frames"][0], model.spec.pixels(sr.read_frames(video, start=3, count=16)))
    assert summary_of(tmp_path / "out")["clips"][0]["start"] == 3


@pytest.mark.parametrize(
    ("name", "frames", "note"),
    [
        ("short", moving(5), "loop padded"),
        pytest.param("large", moving(16, 2160, 3840), "3840×2160 pixels: resized", marks=pytest.mark.slow),
        ("odd", moving(16, 33, 47), "47×33 pixels: resized"),
        ("grey", moving(16)[..., 0], "greyscale"),
        ("rgba", np.concatenate([moving(16), np.full((16, 40, 50, 1), 128, np.uint8)], -1), "alpha"),
    ],
)
def test_unusual_input_is_handled_and_said(tmp_path, capsys, name, frames, note):
    folder = tmp_path / name
    folder.mkdir()
    for step, frame in enumerate(frames):
        order = [2, 1, 0, 3][: frame.shape[2]] if frame.ndim == 3 else None
        cv2.imwrite(str(folder / f"{step}.png"), frame if order is None else frame[..., order])
    assert main(["explain", str(folder), *SMALL, "--out", str(tmp_path / "out")]) == 0
    notes = " ".join(summary_of(tmp_path / "out")["notes"])
    printed = capsys.readouterr().err
    assert note in notes
    assert note in printed
    assert ("padded" in notes) == (name == "short")


def bad_inputs(folder):
    """Name, arguments and a word of the message, for everything that must be refused in one line."""
    good = folder / "good.mp4"
    write_mp4(good, moving(), 20)
    (folder / "text.mp4").write_text("not a video")
    (folder / "empty.mp4").touch()
    (folder / "cut.mp4").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (folder / "nothing").mkdir()
    (folder / "single").mkdir()
    write_png(folder / "single" / "0.png", moving(1)[0])
    weights = small_c3d().state_dict()
    save_file(weights, folder / "five.safetensors")
    save_file(weights | {"fc8.bias": torch.full((5,), float("nan"))}, folder / "nan.safetensors")
    torch.save({"weights": weights, "code": Malicious(folder / "ran")}, folder / "code.pt")
    (folder / "names.txt").write_text("one\ntwo")
    (folder / "file").touch()
    small = ["--model", "networks:small_c3d", "--weights"]
    yield "not a video", [str(folder / "text.mp4"), *SMALL], "text.mp4"
    yield "missing", [str(folder / "missing.mp4"), *SMALL], "does not exist"
    yield "empty", [str(folder / "empty.mp4"), *SMALL], "empty.mp4"
    yield "truncated", [str(folder / "cut.mp4"), *SMALL], "cut.mp4"
    yield "0 frames", [str(folder / "nothing"), *SMALL], "nothing"
    yield "1 frame", [str(folder / "single"), *SMALL], "single"
    yield "start at the last frame", [str(good), *SMALL, "--start", "19"], "at least 2"
    yield "start past the end", [str(good), *SMALL, "--start", "20"], "good.mp4"
    yield "target index", [str(good), *SMALL, "--target", "5"], "0…4"
    yield "target name", [str(good), *SMALL, "--target", "swim"], "class names"
    yield "too few names", [str(good), *SMALL, "--class-names", str(folder / "names.txt")], "2 class names"
    yield "other classes", [str(good), *small, str(folder / "five.safetensors"), "--num-classes", "7"], "5 classes"
    yield "code in a pickle", [str(good), *small, str(folder / "code.pt")], "code.pt"
    yield "NaN weights", [str(good), *small, str(folder / "nan.safetensors")], "NaN"
    yield "no weights", [str(good), "--model", "networks:small_c3d"], "--weights random"
    yield "unknown model", [str(good), "--model", "c33d"], "c3d"
    yield "unknown method", [str(good), *SMALL, "--method", "dtdd"], "'dtd'"
    yield "unknown option", [str(good), *SMALL, "--option", "layer=conv1"], "layer"
    yield "unknown colour map", [str(good), *SMALL, "--cmap", "rainbow"], "rainbow"
    yield "out is a file", [str(good), *SMALL, "--out", str(folder / "file")], "file"
    yield "out is below a file", [str(good), *SMALL, "--out", str(folder / "file" / "out")], "file"
    yield "negative sigma", [str(good), *SMALL, "--n-sigma", "-1"], "n_sigma"
    yield "no such device", [str(good), *SMALL, "--device", "cuda:99"], "cuda"
    yield "json is a folder", [str(good), *SMALL, "--json", str(folder / "nothing")], "nothing"
    yield "empty out", [str(good), *SMALL, "--out", ""], "--out is empty"
    yield "option of the wrong kind", [str(good), *SMALL, "--method", "gradcam", "--option", "layer=3"], "layer"
    yield "option called model", [str(good), *SMALL, "--option", "model=3"], "model"
    yield "other device", [str(good), *SMALL, "--device", "meta"], "cuda"
    yield "no network", [str(good), "--model", "os:getcwd", "--weights", "own"], "torch.nn.Module"
    yield (
        "a factory that fails",
        [str(good), "--model", "networks:small_c3d", "--weights", "own", "--num-classes", "0"],
        "num",
    )
    yield "unknown preset", [str(good), *SMALL, "--preset", "author"], "author-2020"


class Malicious:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys):
    for name, arguments, word in bad_inputs(tmp_path):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
        assert main(["explain", *arguments, *out]) == 2, name
        captured = capsys.readouterr()
        assert captured.err.startswith("selrel: error: "), name
        assert captured.err.count("\n") == 1, (name, captured.err)
        assert word in captured.err, (name, captured.err)
        assert not captured.out, name
        after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        # The folder's own time changes with the staging folder that came and went.
        assert set(after) == set(before), name
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("what", ["methods", "models", "composites", "runners", "presets"])
def test_list(what, capsys, tmp_path):
    assert main(["list", what]) == 0
    text = capsys.readouterr().out
    assert main(["list", what, "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    for row in rows:
        assert row["name"] in text
        assert row["summary"] in text
    some = {"methods": "gradcam", "models": "demo", "composites": "dtd", "runners": "onnxruntime"}
    some["presets"] = "calibrated"
    assert some[what] in {row["name"] for row in rows}


def test_misspelt_commands_are_one_line(capsys):
    for arguments in (["explian"], ["explain", "--methd", "dtd"], ["list", "method"]):
        assert main(arguments) == 2
        captured = capsys.readouterr().err
        assert captured.count("\n") == 1
        assert captured.startswith("selrel: error: ")


def test_versus_and_check(video, tmp_path):
    out = tmp_path / "out"
    options = ["--method", "gradient", "--n-sigma", "1", "--no-frozen", "--out", str(out)]
    assert main(["explain", video, *SMALL, *options, "--versus", "runner-up", "--check"]) == 0
    assert {path.name for path in out.iterdir()} == FILES | {"versus.png", "versus.npz"}
    summary = summary_of(out)
    model = small_c3d()
    clip = model.spec.clip(sr.read_frames(video, count=16))
    selection = sr.MotionSelection(n_sigma=1)
    pair = sr.versus(model, clip, "gradient", selection=selection)
    assert summary["versus"]["target"] == pair.second.target[0] == np.argsort(pair.first.logits[0])[-2]
    assert summary["versus"]["clips"][0]["distance"] == pytest.approx(pair.distance[0], rel=1e-4)
    with np.load(out / "versus.npz") as arrays:
        assert np.allclose(arrays["difference"], pair.difference, atol=1e-6)
    a, b = (one.relevance.ravel().astype(float) for one in (pair.first, pair.second))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert summary["check"]["class_sensitivity"]["cosine"] == pytest.approx(cosine, rel=1e-3)
    assert [step["layer"] for step in summary["check"]["layers"]][:2] == ["fc8", "fc7"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Does the map depend on the class and on the network?" in page
    assert page.count("data:image/png;base64,") == 2
    assert main(["explain", video, *SMALL, *options, "--target", "2", "--versus", "2"]) == 2
    # A later run without --versus leaves none of an earlier one's files beside its own summary.
    assert main(["explain", video, *SMALL, *options]) == 0
    assert {path.name for path in out.iterdir()} == FILES


def test_a_message_names_the_way_of_the_command_line(tmp_path, capsys):
    """In Python the remedy is an argument, here an option."""
    with pytest.raises(sr.InputError, match=r"build_method\('gradcam', model, layer='…'\)"):
        sr.build_method("gradcam", plain_network())
    model = ["--model", "networks:plain_network", "--weights", "own", "--method", "gradcam", "--reference", "none"]
    assert main(["explain", *model, "--out", str(tmp_path / "out")]) == 2
    assert "--option layer=NAME" in capsys.readouterr().err
    assert main(["explain", *model, "--option", "layer=relu1", "--no-frozen", "--out", str(tmp_path / "out")]) == 0
