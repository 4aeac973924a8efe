"""The margin taken apart: figures that add up, through Python, the command line, its files, and the pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import selrel_zennit as sr
from networks import small_c3d
from selrel_zennit.cli import main
from selrel_zennit.clips.video import write_png
from selrel_zennit.metrics import counterfactuals
from selrel_zennit.motion_split import MotionSplit
from selrel_zennit.outputs.painter import Parts, Split
from selrel_zennit.outputs.render import overlay_frames, strip_image

SMALL = ["--model", "networks:small_c3d", "--weights", "own"]


def moving(size=32, steps=16):
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(60, 120, (1, size, size, 3)), steps, 0).astype(np.uint8)
    for step in range(steps):
        frames[step, 8:16, step : step + 8] = (250, 40, 40)
    return frames


@pytest.fixture
def folder(tmp_path):
    for step, frame in enumerate(moving()):
        write_png(tmp_path / "frames" / f"{step:03d}.png", frame)
    return tmp_path / "frames"


def margin_of(logits, target):
    return logits[target] - (logits.sum() - logits[target]) / (len(logits) - 1)


@pytest.mark.parametrize("reference", ["frames", "median"])
def test_all_parts_add_up_to_the_margin(reference):
    model = small_c3d()
    clip = model.spec.clip(moving())
    explanation = sr.explain(model, clip, "gradient", motion=reference)
    split, target = explanation.split, int(explanation.target[0])
    assert split.margin[0] == pytest.approx(margin_of(explanation.logits[0], target), rel=1e-5)
    assert split.blank_margin[0] == pytest.approx(
        float(margin_of(model(torch.zeros_like(clip))[0], target)), rel=1e-4, abs=1e-5
    )
    size = float(np.abs(split.motion_part).sum() + np.abs(split.static_part).sum())
    assert split.motion_part.sum(dtype=float) == pytest.approx(split.motion[0], abs=1e-5 * size)
    assert split.static_part.sum(dtype=float) == pytest.approx(split.still[0], abs=1e-5 * size)
    assert split.blank_margin[0] + split.still[0] + split.motion[0] == pytest.approx(split.margin[0], rel=1e-5)
    low, high = split.bounds()
    assert low[0] <= split.motion[0] <= high[0]
    assert (low[0] < high[0]) == (reference == "frames")
    assert explanation.clip(0).split.sentence() == split.sentence()


def test_the_method_itself_says_it_too(folder, tmp_path, capsys):
    """As an artifact of motion_lrp does, which has neither the other part nor the margins of the references."""
    out = tmp_path / "out"
    given = ["--method", "motion_lrp", "--option", "reference=middle", "--reference", "none", "--no-frozen"]
    assert main(["explain", str(folder), *SMALL, *given, "--out", str(out)]) == 0
    margin = json.loads((out / "summary.json").read_text(encoding="utf-8"))["clips"][0]["margin"]
    model = sr.load_model("networks:small_c3d", "own")
    split = sr.explain(model, model.spec.clip(moving()), "gradient", motion="middle").split
    assert margin["motion"] == pytest.approx(float(split.motion[0]), rel=1e-4)
    assert margin["total"] == pytest.approx(float(split.margin[0]), rel=1e-5)
    assert split.sentence() in capsys.readouterr().out
    assert "Motion, of the margin" in (out / "report.html").read_text(encoding="utf-8")


def test_a_still_clip_says_exactly_nothing_is_motion():
    model = small_c3d()
    still = np.repeat(moving()[5:6], 16, 0)
    split = sr.explain(model, model.spec.clip(still), "gradient", motion="frames").split
    assert (split.motion_part == 0).all()
    assert (split.motion == 0).all()
    assert split.sentence().startswith("0 of ")
    assert "0 to 0 over 4 reference frames" in split.sentence()


def test_explain_writes_prints_and_draws_it(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["explain", str(folder), *SMALL, "--method", "gradient", "--check", "motion", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    margin = summary["clips"][0]["margin"]
    assert f"frame 0: {margin['sentence']}" in printed
    model = sr.load_model("networks:small_c3d", "own")
    split = sr.explain(model, model.spec.clip(moving()), "gradient", motion="frames").split
    assert margin["motion"] == pytest.approx(float(split.motion[0]), rel=1e-5)
    assert (margin["reference"], len(margin["frozen"])) == ("frames", 4)
    with np.load(out / "explanation.npz") as arrays:
        np.testing.assert_allclose(arrays["motion_part"], split.motion_part, atol=1e-6)
        np.testing.assert_allclose(arrays["static_part"], split.static_part, atol=1e-6)
        assert arrays["frozen_margins"].shape == (1, 4)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Motion, of the margin" in page
    assert page.index("Motion, of the margin") < page.index("Motion relevance")
    assert "frozen to frame 16" in page
    assert len(summary["counterfactuals"]["frozen"]) == 16


def test_integrated_gradients_say_how_far_off_their_sum_is(folder, tmp_path, capsys):
    out = tmp_path / "out"
    given = ["--method", "integrated_gradients", "--option", "steps=3", "--reference", "none"]
    assert main(["explain", str(folder), *SMALL, *given, "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    model = sr.load_model("networks:small_c3d", "own")
    clip = model.spec.clip(moving())
    explanation = sr.explain(model, clip, "integrated_gradients", steps=3)
    target = int(explanation.target[0])
    change = float(explanation.logits[0, target] - model(torch.zeros_like(clip))[0, target])
    error = abs(float(explanation.relevance.sum(dtype=float)) - change) / abs(change)
    assert summary["info"]["completeness_error"] == [pytest.approx(error, rel=1e-3)]
    assert f"to within {error:.2%}" in capsys.readouterr().err


def test_without_a_reference_it_is_left_out(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["explain", str(folder), *SMALL, "--method", "gradient", "--reference", "none", "--out", str(out)]) == 0
    assert "margin" not in capsys.readouterr().out
    assert "margin" not in json.loads((out / "summary.json").read_text(encoding="utf-8"))["clips"][0]


def test_a_network_that_has_no_rules_is_explained_all_the_same(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--model", "own_network:make_normed", "--weights", "own", "--method", "gradient", "--out", str(out)]
    (tmp_path / "own_network.py").write_text(NORMED, encoding="utf-8")
    import sys

    sys.path.insert(0, str(tmp_path))
    try:
        assert main(["explain", *arguments]) == 0
    finally:
        sys.path.remove(str(tmp_path))
    assert "no motion part: motion_lrp has no rule for GroupNorm" in capsys.readouterr().err


NORMED = """
from torch import nn
import selrel_zennit as sr

def make_normed():
    layers = nn.Conv3d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)
    model = nn.Sequential(*layers)
    model.spec = sr.ClipSpec(frames=4, short_side=16, crop=16)
    return model
"""


def test_pictures_have_a_panel_for_each_part_in_one_scale():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 20, 30, 3)).astype(np.uint8)
    relevance, static, motion = rng.normal(size=(3, 4, 20, 30)).astype(np.float32)
    words = {"title": "t", "top5": [("a", 0.5)], "target_name": "a", "motion_share": (0.1, 0.2)}
    split = Split(static * 0, motion, "1.0 of 2.0", ("0.5 to 1.5 over 4 reference frames",))
    for draw in (overlay_frames, strip_image):
        without = draw(pixels, relevance, relevance * 0, **words)
        given = draw(pixels, relevance, relevance * 0, **words, split=split)
        assert given.shape != without.shape
        other = draw(pixels, relevance, relevance * 0, **words, split=split._replace(motion_part=motion[::-1]))
        assert (other != given).any()
    # A static part far below the motion part is dark on their common scale, whatever it would be on its own.
    dark, lit = Parts(pixels, split._replace(static_part=static * 1e-6), "coldnhot", 1.0).panels(0, (60, 40))
    none, _ = Parts(pixels, split, "coldnhot", 1.0).panels(0, (60, 40))
    assert np.abs(dark.astype(int) - none).max() <= 2
    assert np.abs(lit.astype(int) - none).max() > 100


def test_counterfactuals_are_the_networks_margins_of_reordered_frames():
    model = small_c3d()
    clip = model.spec.clip(moving())
    found = counterfactuals(model, clip, shuffles=3, seed=4, batch=5)
    target = int(model(clip).argmax())

    def margin(order):
        return pytest.approx(float(margin_of(model(clip[:, :, order])[0], target)), rel=1e-4, abs=1e-5)

    assert found.clip == margin(list(range(16)))
    assert found.backwards == margin(list(range(16))[::-1])
    assert found.frozen[3] == margin([3] * 16)
    rng = np.random.default_rng(4)
    assert found.shuffled[1] == margin([rng.permutation(16) for _ in range(2)][1].tolist())
    assert len(found.frozen) == 16
    with pytest.raises(sr.InputError, match="one clip"):
        counterfactuals(model, clip.repeat(2, 1, 1, 1, 1))
    with pytest.raises(sr.InputError, match="one class"):
        counterfactuals(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16**3, 1)).eval(), clip)


def test_what_does_not_fit_is_refused():
    good = {
        "margin": np.zeros(1),
        "frozen_margins": np.zeros((1, 2)),
        "blank_margin": np.zeros(1),
        "motion_part": np.zeros((1, 2, 3, 3)),
        "static_part": np.zeros((1, 2, 3, 3)),
        "reference": "frames",
    }
    MotionSplit(**good)
    for bad in (
        {"margin": np.zeros(2)},
        {"frozen_margins": np.zeros(2)},
        {"static_part": np.zeros((1, 2, 3, 4))},
        {"motion_part": np.zeros((2, 3, 3))},
        {"blank_margin": np.full(1, np.nan)},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            MotionSplit(**{**good, **bad})
