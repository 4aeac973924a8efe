"""The motion share of the same clip frozen: computed, written, printed and drawn beside the clip's own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import selrel_zennit as sr
from networks import small_c3d
from selrel_zennit.cli import main
from selrel_zennit.clips.video import write_png
from selrel_zennit.explanation import ClipExplanations, MotionShare
from selrel_zennit.outputs.files import summarise, write_outputs
from selrel_zennit.outputs.render import overlay_frames, strip_image
from selrel_zennit.outputs.report import report_html
from selrel_zennit.pipeline import explain_video

SMALL = ["--model", "networks:small_c3d", "--weights", "own"]
SETTINGS = {"method": "dtd", "model": "small", "preset": "default", "n_sigma": 4.0}
MEDIA = {"overlay": b"", "strip": b""}


def moving(count=16):
    frames = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8).repeat(count, 0)
    for step in range(count):
        frames[step, 4:9, step % 12 : step % 12 + 4] = (255, 40, 0)
    return frames


@pytest.mark.parametrize("method", ["dtd", "gradient"])
def test_it_is_the_share_of_the_middle_frame_repeated(method):
    model, frames, selection = small_c3d(), moving(32), sr.MotionSelection(n_sigma=2)
    clips = explain_video(model, frames, method, selection=selection, all_clips=True)
    assert clips.frozen_share is not None
    for index in range(2):
        still = model.spec.clip(frames[16 * index + 8][None].repeat(16, 0))
        target = int(clips.explanation.target[index])
        expected = sr.explain(model, still, method, target, selection=selection).motion_share()
        for kind in ("area", "mass"):
            assert getattr(clips.frozen_share, kind)[index] == pytest.approx(getattr(expected, kind)[0])
            assert getattr(clips.frozen_share, kind)[index] != getattr(clips.explanation.motion_share(), kind)[index]
        assert set(clips.seconds[index]) == {"read", "forward_backward", "select", "frozen"}


def test_a_clip_that_is_frozen_already_has_its_own_share():
    model, still = small_c3d(), moving(1).repeat(16, 0)
    clips = explain_video(model, still, "dtd", selection=sr.MotionSelection(n_sigma=2))
    own = clips.explanation.motion_share()
    assert own.mass[0] > 0
    assert clips.frozen_share == own


def test_what_is_timed_is_one_explanation():
    model, calls = small_c3d(), []
    handle = model.conv1.register_forward_hook(lambda *arguments: calls.append(1))
    clips = explain_video(model, moving(), "gradcam", frozen=False)
    handle.remove()
    assert len(calls) == 1
    assert clips.frozen_share is None
    assert "frozen" not in clips.seconds[0]


def test_the_command_writes_and_prints_it(tmp_path, capsys):
    (tmp_path / "frames").mkdir()
    for step, frame in enumerate(moving()):
        write_png(tmp_path / "frames" / f"{step}.png", frame)
    arguments = ["explain", str(tmp_path / "frames"), *SMALL, "--n-sigma", "2", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    clip = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["clips"][0]
    assert 0 < clip["frozen_mass"] < 1
    assert 0 < clip["frozen_area"] < 1
    assert f"frozen, where nothing moves: {clip['frozen_mass']:.1%}" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"still keeps {100 * clip['frozen_mass']:.1f} % of the relevance" in page

    assert main([*arguments, "--no-frozen"]) == 0
    clip = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["clips"][0]
    assert clip["frozen_mass"] is clip["frozen_area"] is None
    assert "frozen" not in capsys.readouterr().out
    assert "still keeps" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def a_result(relevance, frozen):
    mask = np.abs(relevance) > 1
    explanation = sr.Explanation(
        np.zeros((len(relevance), 3), np.float32),
        np.zeros(len(relevance), np.int64),
        relevance,
        np.where(mask, relevance, 0).astype(np.float32),
        mask,
    )
    pixels = np.zeros((*relevance.shape, 3), np.uint8)
    seconds = [{} for _ in relevance]
    return ClipExplanations(explanation, pixels, [0] * len(relevance), seconds, 25.0, [], {}, frozen)


def test_a_share_of_nothing_is_null_and_drawn(tmp_path):
    zero = np.zeros((1, 4, 16, 16), np.float32)
    nan = np.full(1, np.nan)
    clips = a_result(zero, MotionShare(nan, nan))
    summary = write_outputs(tmp_path, clips, settings=SETTINGS)
    assert summary["clips"][0]["motion_mass"] is summary["clips"][0]["frozen_mass"] is None
    assert "still keeps" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_one_share_for_each_clip():
    relevance = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    clips = a_result(relevance, MotionShare(np.array([0.1, 0.2]), np.array([0.3, 0.4])))
    entries = summarise(clips, settings=SETTINGS)["clips"]
    assert [(entry["frozen_area"], entry["frozen_mass"]) for entry in entries] == [(0.1, 0.3), (0.2, 0.4)]
    with pytest.raises(ValueError, match="1 frozen shares for 2 clips"):
        a_result(relevance, MotionShare(np.array([0.1]), np.array([0.3])))


@pytest.mark.parametrize("draw", [overlay_frames, strip_image])
def test_the_pictures_show_it(draw):
    rng = np.random.default_rng(0)
    relevance = rng.normal(size=(4, 20, 24)).astype(np.float32)
    maps = (rng.integers(0, 256, (4, 20, 24, 3), dtype=np.uint8), relevance, np.where(relevance > 1, relevance, 0))
    words = {"title": "t", "top5": [("a", 0.5)], "target_name": "a", "motion_share": (0.1, 0.2)}
    without, low, high = (draw(*maps, **words, frozen_share=share) for share in (None, (0.1, 0.2), (0.3, 0.4)))
    assert without.shape == low.shape
    assert (without != low).any()
    assert (low != high).any()


def test_the_report_shows_it_for_each_clip():
    entry = {"start": 0, "motion_area": 0.02, "motion_mass": 0.1, "frozen_area": 0.0123, "frozen_mass": 0.0456}
    summary = {"target_name": "a", "top5": [["a", 0.9]], "clips": [entry, {**entry, "frozen_mass": 0.0654}]}
    page = report_html(summary, MEDIA)
    for words in ("1.2 %", "4.6 %", "6.5 %", "still keeps 5.5 %", "against 10.0 %", "Frozen clip, share of relevance"):
        assert words in page, words
    assert "rozen" not in report_html({**summary, "clips": [{"start": 0}]}, MEDIA)
