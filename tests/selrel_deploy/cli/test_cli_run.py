"""`selrel run` as a user calls it: what explain writes, from an artifact, for the clips that were asked for."""

import json
import shutil

import av
import cv2
import numpy as np
import pytest

import selrel_zennit as sr
from helpers import slow_but
from networks import small_c3d
from selrel_deploy import open_runner
from selrel_deploy.runners.base import Runner
from selrel_deploy.runners.explainer import RunnerExplainer
from selrel_zennit.cli import main
from selrel_zennit.clips.video import write_png
from selrel_zennit.loop import Condition, explain_clips
from videos import encode

from ..conftest import FRAME_SIZE, NAMES

FILES = {"overlay.mp4", "strip.png", "report.html", "explanation.npz", "summary.json"}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A folder of 55 frames: a square that crosses the picture while the scene grows dark from clip to clip."""
    folder = tmp_path_factory.mktemp("video") / "frames"
    folder.mkdir()
    scene = np.random.default_rng(0).integers(0, 256, (*FRAME_SIZE, 3), dtype=np.uint8)
    for step in range(55):
        frame = scene // (step // 16 + 1)
        frame[5:15, step % 16 * 2 : step % 16 * 2 + 10] = (255, 40, 0)
        write_png(folder / f"{step:03d}.png", frame)
    return str(folder)


def run(*arguments):
    return main(["run", *map(str, arguments)])


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def logits_of(video, starts):
    model = small_c3d()
    frames = sr.read_frames(video)
    return [model(model.spec.clip(frames, start)).numpy()[0] for start in starts]


def probabilities(logits):
    exponentials = np.exp(logits - np.max(logits))
    return exponentials / exponentials.sum()


@pytest.mark.parametrize("kind", slow_but(["whole", "split", "uint8"], "whole"))
def test_run_writes_what_explain_does(artifacts, video, tmp_path, capsys, kind):
    assert run(artifacts[kind], video, "--out", tmp_path / "run") == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    printed = capsys.readouterr().out
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    model = ["--model", "networks:small_c3d", "--weights", "own", "--class-names", str(tmp_path / "names.txt")]
    assert main(["explain", video, *model, "--reference", "none", "--out", str(tmp_path / "explain")]) == 0
    assert printed.splitlines()[0] == capsys.readouterr().out.splitlines()[0]

    found, expected = summary_of(tmp_path / "run"), summary_of(tmp_path / "explain")
    assert set(found) == set(expected) | {"provider", "precision", "artifact"}
    same = ("video", "model", "weights", "method", "preset", "n_sigma", "target", "target_name", "notes", "warnings")
    assert {key: found[key] for key in same} == {key: expected[key] for key in same}
    assert (found["runner"], found["provider"], found["precision"]) == ("onnxruntime", "CPUExecutionProvider", "fp32")
    assert [name for name, _ in found["top5"]] == [name for name, _ in expected["top5"]]
    for clip, other in zip(found["clips"], expected["clips"], strict=True):
        assert clip["start"] == other["start"]
        for key in ("motion_area", "motion_mass", "frozen_area", "frozen_mass", "relevance_sum"):
            assert clip[key] == pytest.approx(other[key], rel=1e-2), key
        assert set(clip["seconds"]) == set(other["seconds"])
    with (
        np.load(tmp_path / "run" / "explanation.npz") as arrays,
        np.load(tmp_path / "explain/explanation.npz") as right,
    ):
        assert np.array_equal(arrays["frames"], right["frames"])
        assert np.allclose(arrays["logits"], right["logits"], rtol=1e-4, atol=1e-3)
        error = np.linalg.norm(arrays["relevance"] - right["relevance"])
        assert error <= 1e-3 * np.linalg.norm(right["relevance"])
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert found["target_name"] in page
    assert "select, s" not in page


@pytest.mark.parametrize("kind", slow_but(["whole", "uint8"], "whole"))
def test_pixels_that_are_not_square(artifacts, video, tmp_path, kind):
    """26 pixels that are 25:13 as wide as high are 50 square ones, the width that the artifact of frames takes."""
    squeezed = np.stack([cv2.resize(frame, (26, 40)) for frame in sr.read_frames(video, count=16)])
    path = encode(tmp_path / "x.mp4", squeezed, "libx264", options={"crf": "4"}, aspect="25/13")
    assert run(artifacts[kind], path, "--no-frozen", "--out", tmp_path / "run") == 0
    summary = summary_of(tmp_path / "run")
    assert "pixels are 25:13, not square: 26×40 resampled to 50×40" in summary["notes"]
    with av.open(str(path)) as container:
        wide = np.stack([cv2.resize(f.to_ndarray(format="rgb24"), (50, 40)) for f in container.decode(video=0)])
    model = small_c3d()
    with np.load(tmp_path / "run" / "explanation.npz") as arrays:
        assert np.array_equal(arrays["frames"][0], model.spec.pixels(wide))
        assert np.allclose(arrays["logits"], model(model.spec.clip(wide)).numpy(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", slow_but(["whole", "split"], "whole"))
def test_all_clips_explain_the_class_with_the_highest_mean_logit(artifacts, video, tmp_path, kind):
    assert run(artifacts[kind], video, "--all-clips", "--no-frozen", "--out", tmp_path) == 0
    summary = summary_of(tmp_path)
    assert [clip["start"] for clip in summary["clips"]] == [0, 16, 32]
    target = int(np.mean(logits_of(video, (0, 16, 32)), 0).argmax())
    assert summary["target"] == target
    assert summary["target_name"] == NAMES[target]
    assert summary["clips"][0]["frozen_mass"] is None
    assert any("frames 48…54" in note for note in summary["notes"])
    with np.load(tmp_path / "explanation.npz") as arrays:
        assert (arrays["target"] == target).all()
        assert np.allclose(arrays["logits"], logits_of(video, (0, 16, 32)), rtol=1e-4, atol=1e-3)


def test_targets_and_start(artifacts, video, tmp_path):
    for target, expected in (("3", 3), ("swim", 4), ("jump: high", 2)):
        assert run(artifacts["whole"], video, "--target", target, "--start", 3, "--no-frozen", "--out", tmp_path) == 0
        summary = summary_of(tmp_path)
        assert (summary["target"], summary["target_name"]) == (expected, NAMES[expected])
        assert summary["clips"][0]["start"] == 3


@pytest.mark.parametrize("kind", slow_but(["whole", "split"], "whole"))
@pytest.mark.parametrize("named", ["any", "walk"])
def test_explain_when(artifacts, video, tmp_path, capsys, kind, named):
    """The limit lies between the clips' probabilities, so some are explained and some are not."""
    every = [probabilities(logits) for logits in logits_of(video, (0, 16, 32))]
    counted = [one.max() if named == "any" else one[0] for one in every]
    limit = float(np.sort(counted)[1] + np.sort(counted)[2]) / 2
    met = [start for start, one in zip((0, 16, 32), counted, strict=True) if one >= limit]
    assert len(met) == 1

    assert run(artifacts[kind], video, "--all-clips", "--explain-when", f"{named}:{limit}", "--out", tmp_path) == 0
    summary = summary_of(tmp_path)
    assert [clip["start"] for clip in summary["clips"]] == met
    watched = summary["explain_when"]
    assert (watched["class"], watched["probability"]) == (named, limit)
    assert [clip["probability"] for clip in watched["clips"]] == pytest.approx(counted, rel=1e-3)
    assert [clip["start"] for clip in watched["clips"] if clip["explained"]] == met
    right = int(every[met[0] // 16].argmax()) if named == "any" else 0
    assert summary["target"] == right
    assert any("1 of 3 clips explained" in note for note in summary["notes"])
    assert ("not split" in capsys.readouterr().err) == (kind == "whole")
    with np.load(tmp_path / "explanation.npz") as arrays:
        assert len(arrays["relevance"]) == 1

    # Where none meets it, nothing of the last run stays beside the summary.
    assert run(artifacts[kind], video, "--all-clips", "--explain-when", "sit:1", "--out", tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    nothing = summary_of(tmp_path)
    assert set(nothing) == set(summary)
    assert (nothing["target"], nothing["clips"]) == (None, [])
    assert not any(clip["explained"] for clip in nothing["explain_when"]["clips"])
    assert "no clip explained: sit reaches" in capsys.readouterr().out


@pytest.mark.slow
def test_a_split_artifact_pays_for_the_explanations_it_gives(artifacts, video, monkeypatch):
    counts = {"forward": 0, "explain": 0}
    for name in counts:
        honest = getattr(Runner, name)

        def counted(self, *arguments, name=name, honest=honest):
            counts[name] += 1
            return honest(self, *arguments)

        monkeypatch.setattr(Runner, name, counted)
    spec = small_c3d().spec
    with open_runner(artifacts["split"]) as runner:
        explainer = RunnerExplainer(runner, spec)
        unmet = explain_clips(video, explainer, 0, all_clips=True, frozen=False, when=Condition(0, 1.0))
        assert list(unmet) == []
        assert counts == {"forward": 3, "explain": 0}
        met = explain_clips(video, explainer, 0, all_clips=True, frozen=False, when=Condition(0, 0.0))
        assert len(list(met)) == 3
        assert counts == {"forward": 6, "explain": 3}


def test_a_whole_artifact_explains_a_clip_again_only_for_another_class(artifacts, video, monkeypatch):
    """The mean logits cost it an explanation of every clip for its own class: those of the class explained are kept."""
    calls, honest = [], Runner.__call__
    monkeypatch.setattr(
        Runner, "__call__", lambda self, clip, target=None: calls.append(target) or honest(self, clip, target)
    )
    tops = [int(logits.argmax()) for logits in logits_of(video, (0, 16, 32))]
    target = int(np.mean(logits_of(video, (0, 16, 32)), 0).argmax())
    with open_runner(artifacts["whole"]) as runner:
        explainer = RunnerExplainer(runner, small_c3d().spec, {"class_names": NAMES})
        found = list(explain_clips(video, explainer, all_clips=True, frozen=False))
        again = [top for top in tops if top != target]
        assert calls == [-1] * 3 + [target] * len(again)
        for clip, start in zip(found, (0, 16, 32), strict=True):
            alone = explain_clips(video, explainer, NAMES[target], start=start, frozen=False)
            (right,) = [one.explanation for one in alone]
            assert np.array_equal(clip.explanation.relevance, right.relevance)
            assert np.array_equal(clip.explanation.mask, right.mask)
            assert clip.explanation.target.tolist() == right.target.tolist() == [target]


def bad_inputs(artifacts, video, folder):
    """Name, arguments and a word of the message, for everything that must be refused in one line."""
    for name in ("byte", "golden", "newer"):
        (folder / name).mkdir()
        for file in artifacts["whole"].parent.glob("whole.*"):
            shutil.copy(file, folder / name)
    whole = (folder / "byte" / "whole.onnx").read_bytes()
    (folder / "byte" / "whole.onnx").write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    (folder / "golden" / "whole.golden.npz").unlink()
    manifest = folder / "newer" / "whole.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"schema": "', '"schema": "9'), encoding="utf-8")
    (folder / "text.mp4").write_text("not a video")
    write_png(folder / "small_1.png", np.zeros((30, 30, 3), np.uint8))
    write_png(folder / "small_2.png", np.zeros((30, 30, 3), np.uint8))
    good = artifacts["whole"]
    yield "missing", [folder / "missing.onnx", video], "does not exist"
    yield "a changed byte", [folder / "byte" / "whole.onnx", video], "hash differs"
    yield "no golden cases", [folder / "golden" / "whole.onnx", video], "whole.golden.npz does not exist"
    yield "a newer schema", [folder / "newer" / "whole.onnx", video], "newer selrel-zennit"
    yield "no video", [good, folder / "text.mp4"], "text.mp4"
    yield "other frame size", [artifacts["uint8"], folder], "30×30"
    yield "target index", [good, video, "--target", "5"], "0…4"
    yield "negative target", [good, video, "--target", "-1"], "0…4"
    yield "target name", [good, video, "--target", "swin"], "'swim'"
    yield "no runner", [good, video, "--runner", "tensorflow"], "onnxruntime"
    yield "a runner of graphs", [good, video, "--runner", "eager"], "compile_explanation"
    yield "no such provider", [good, video, "--provider", "CUDAExecutionProvider"], "CUDAExecutionProvider"
    yield "no probability", [good, video, "--explain-when", "walk"], "CLASS:PROB"
    yield "no such probability", [good, video, "--explain-when", "walk:1.5"], "0…1"
    yield "no such class", [good, video, "--explain-when", "wlak:0.5"], "'walk'"
    yield "empty out", [good, video, "--out", ""], "--out is empty"
    yield "unknown colour map", [good, video, "--cmap", "rainbow"], "rainbow"


@pytest.mark.slow
def test_bad_input_is_one_line_and_leaves_nothing(artifacts, video, tmp_path, capsys):
    for name, arguments, word in bad_inputs(artifacts, video, tmp_path):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        out = [] if "--out" in arguments else ["--out", tmp_path / "out"]
        assert run(*arguments, *out) == 2, name
        captured = capsys.readouterr()
        assert captured.err.startswith("selrel: error: "), name
        assert captured.err.count("\n") == 1, (name, captured.err)
        assert word in captured.err, (name, captured.err)
        assert not captured.out, name
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before, name
