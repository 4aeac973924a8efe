"""Calibrated thresholds: quantiles of an independent null, verified on other clips, refused where they do not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from zennit.attribution import Gradient as ZennitGradient

import selrel_zennit as sr
from networks import small_c3d
from selrel_zennit.calibration.stills import Stills, synthetic_stills, video_stills
from selrel_zennit.calibration.thresholds import TOLERANCE, shipped_for
from selrel_zennit.cli import main
from selrel_zennit.clips.video import write_mp4, write_png

SMALL = ["--model", "networks:small_c3d", "--weights", "own"]


def noise_stills(clips, held_out, seed=0, size=16):
    """Frames of smooth noise, every one of another contrast."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((clips + held_out, size // 2, size // 2, 3)) * rng.uniform(0.3, 1, (clips + held_out, 1, 1, 1))
    frames = np.rint(255 * coarse.repeat(2, 1).repeat(2, 2)).astype(np.uint8)
    return Stills(list(frames[:clips]), list(frames[clips:]), "noise", None, seed)


@pytest.fixture(scope="module")
def model():
    return small_c3d()


@pytest.fixture(scope="module")
def calibration(model):
    return sr.calibrate(model, "gradient", noise_stills(20, 10), alphas=(0.01, 0.05), classes="top")


def null(model, frame):
    """|G| of a frozen clip in float64, from a plain gradient: [T,H,W]."""
    clip = model.spec.clip(np.stack([frame] * 16)).requires_grad_()
    logits = model(clip)
    (relevance,) = torch.autograd.grad(logits[0, logits.argmax()], clip)
    summed = relevance[0].double().sum(0).numpy()
    summed /= np.abs(summed).sum()
    padded = np.pad(summed, 1, mode="edge")
    change = padded[2:] - padded[:-2]
    rows = change[:, :-2] + 2 * change[:, 1:-1] + change[:, 2:]
    return np.abs(rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:])


def test_thresholds_are_the_quantiles_of_the_null(model, calibration):
    stills = noise_stills(20, 10)
    fit, held_out = (np.stack([null(model, frame) for frame in part]) for part in (stills.fit, stills.held_out))
    assert calibration.alphas == (0.05, 0.01)
    for level in calibration.levels:
        per_step = fit.transpose(1, 0, 2, 3).reshape(16, -1)
        expected = np.quantile(per_step, 1 - level.alpha, axis=1, method="inverted_cdf")
        np.testing.assert_allclose(level.thresholds, expected, rtol=1e-3)
        assert len(set(level.thresholds)) == 16
        rates = (held_out > np.asarray(level.thresholds)[None, :, None, None]).mean((1, 2, 3))
        assert level.held_out_rate == pytest.approx(rates.mean(), abs=2 / held_out.size)
        assert level.held_out_error == pytest.approx(rates.std(ddof=1) / np.sqrt(10), rel=0.05)
    assert (calibration.clips, calibration.held_out, calibration.stills) == (20, 10, "noise")


def test_the_false_positive_rate_holds_on_other_clips(model):
    calibration = sr.calibrate(model, "gradient", noise_stills(80, 80), alphas=(0.05, 0.01), classes="top")
    assert all(level.holds for level in calibration.levels), calibration.levels
    # A third set of clips, through the public selection.
    for alpha in calibration.alphas:
        selection = calibration.selection(alpha)
        kept = [
            sr.explain(model, model.spec.clip(np.stack([frame] * 16)), "gradient", selection=selection).mask.mean()
            for frame in noise_stills(80, 0, seed=1).fit
        ]
        assert abs(np.mean(kept) - alpha) <= TOLERANCE * alpha


def test_drawn_classes_hold_for_any_class(model):
    """The rate of a class that no clip is taken for: of its own top class it is another."""
    stills = noise_stills(160, 160)
    calibration = sr.calibrate(model, "gradient", stills, alphas=(0.05,))
    assert calibration.classes == "drawn"
    assert calibration.levels[0].holds
    selection, rng = calibration.selection(0.05), np.random.default_rng(5)
    kept = [
        sr.explain(
            model, model.spec.clip(np.stack([frame] * 16)), "gradient", int(rng.integers(5)), selection=selection
        ).mask.mean()
        for frame in noise_stills(120, 0, seed=1).fit
    ]
    assert abs(np.mean(kept) - 0.05) <= TOLERANCE * 0.05
    with pytest.raises(sr.InputError, match="'drawn' or 'top'"):
        sr.calibrate(model, "gradient", stills, classes="all")


def test_a_rate_outside_the_tolerance_does_not_hold(calibration):
    level = replace(calibration.levels[0], held_out_rate=0.06)
    assert level.holds
    for rate in (0.0601, 0.0399, 0.0, 1.0):
        assert not replace(level, held_out_rate=rate).holds


def test_time_steps_at_which_a_method_cannot_change_are_not_counted(model):
    """Grad-CAM at a layer of two time steps, upsampled to 16: flat over the first and the last three."""
    stills = noise_stills(60, 60)
    calibration = sr.calibrate(model, "gradcam", stills, alphas=(0.05,), classes="top", layer="relu4a")
    (level,) = calibration.levels
    still = np.asarray(level.thresholds) == 0
    assert still.any()
    assert not still.all()
    selection = calibration.selection(0.05)
    masks = [
        sr.explain(model, model.spec.clip(np.stack([frame] * 16)), "gradcam", layer="relu4a", selection=selection).mask[
            0
        ]
        for frame in stills.held_out
    ]
    assert not np.stack(masks)[:, still].any()
    assert level.held_out_rate == pytest.approx(np.stack(masks)[:, ~still].mean(), rel=1e-5)
    assert level.held_out_rate > np.stack(masks).mean()


def test_all_zero_relevance_counts_as_no_change(model):
    class Blind(torch.nn.Sequential):
        """Its logits do not depend on the clip."""

        def forward(self, clip):
            return super().forward(clip * 0)

    blind = Blind(model).eval()
    blind.spec = model.spec
    calibration = sr.calibrate(blind, "gradient", noise_stills(3, 2), alphas=(0.1,))
    assert calibration.levels[0].thresholds == (0.0,) * 16
    assert calibration.levels[0].held_out_rate == 0


def test_json_round_trip(calibration, tmp_path):
    calibration.write(tmp_path / "a.json")
    assert sr.Calibration.read(tmp_path / "a.json") == calibration
    assert sr.Calibration.from_json(calibration.to_json()) == calibration
    held = json.loads(calibration.to_json())
    assert held["schema"] == 2
    assert held["made_for"]["method"] == "gradient"
    assert held["made_for"]["clip_spec"]["frames"] == 16


def test_files_that_are_no_calibration(calibration, tmp_path):
    good = calibration.to_dict()
    level = good["levels"][0]
    bad = {
        "garbage": "{",
        "a list": "[]",
        "no schema": "{}",
        "later": json.dumps({**good, "schema": 3}),
        "unknown field": json.dumps({**good, "extra": 1}),
        "no levels": json.dumps({**good, "levels": []}),
        "alpha": json.dumps({**good, "levels": [{**level, "alpha": 0.5}]}),
        "too few thresholds": json.dumps({**good, "levels": [{**level, "thresholds": level["thresholds"][1:]}]}),
        "negative": json.dumps({**good, "levels": [{**level, "thresholds": [-1.0] * 16}]}),
        "no numbers": json.dumps({**good, "levels": [{**level, "thresholds": ["a"] * 16}]}),
        "rate": json.dumps({**good, "levels": [{**level, "held_out_rate": 2}]}),
        "no clip spec": json.dumps({**good, "made_for": {**good["made_for"], "clip_spec": {}}}),
        "not UTF-8": b"\xff\xfe",
    }
    for name, text in bad.items():
        path = tmp_path / f"{name}.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(sr.InputError, match=rf"{name}\.json") as raised:
            sr.Calibration.read(path)
        assert "\n" not in str(raised.value), name
    with pytest.raises(sr.InputError, match="missing"):
        sr.Calibration.read(tmp_path / "missing.json")


def test_it_selects_like_any_selection(model, calibration, clip):
    selection = calibration.selection(0.05)
    relevance = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    motion, mask = selection(relevance)
    assert torch.equal(motion, torch.where(mask[:, None], relevance, 0))
    assert torch.equal(selection.mask(relevance * 2.0**40), mask)
    assert np.array_equal(selection.mask(relevance.numpy()), mask.numpy())
    attributor = sr.build_method("gradient", model)
    explanation = sr.explain(model, clip, attributor, selection=selection)
    with sr.Selective(attributor, selection) as selective:
        logits, kept = selective(clip, sr.one_hot(int(explanation.target[0]), 5))
    assert np.allclose(kept.sum(1), explanation.motion_relevance, atol=1e-6)
    assert logits.shape == (1, 5)
    assert selective.info["selection"]["alpha"] == 0.05


def test_what_it_was_not_made_for_is_refused(model, calibration, clip):
    selection = calibration.selection(0.05)
    respecified, renamed = small_c3d(), small_c3d()
    respecified.spec = replace(model.spec, mean=(0.0, 0.0, 0.0))
    renamed.provenance = {"model": "another", "weights": None, "sha256": None}
    others = {
        "weights": (small_c3d(seed=1), "gradient"),
        "method, gradient, not dtd": (model, "dtd"),
        "clip spec": (respecified, "gradient"),
        "model, C3D, not another": (renamed, "gradient"),
    }
    for what, (other, method) in others.items():
        with pytest.raises(sr.InputError, match=f"another {what}.*selrel calibrate") as raised:
            sr.explain(other, clip, method, selection=selection)
        assert "\n" not in str(raised.value)
        with pytest.raises(sr.InputError, match=f"another {what}"):
            sr.Selective(sr.build_method(method, other), selection)
    # Its values are the same, but no name says so.
    with pytest.raises(sr.InputError, match="another method, gradient, not Gradient"):
        sr.Selective(ZennitGradient(model), selection)


def test_options_count_also_where_they_are_left_out(model):
    made = sr.calibrate(model, "gradcam", noise_stills(2, 2), alphas=(0.1,), layer="relu4b").selection(0.1)
    made.check(sr.build_method("gradcam", model, layer="relu4b"))
    with pytest.raises(sr.InputError, match=r"another options.*relu4b"):
        made.check(sr.build_method("gradcam", model, layer="relu3b"))
    default = sr.calibrate(model, "gradcam", noise_stills(2, 2), alphas=(0.1,)).selection(0.1)
    default.check(sr.build_method("gradcam", model, layer=None))


@pytest.mark.parametrize("alpha", [0, 0.5, -0.1, 1, float("nan"), "0.1", True])
def test_alpha_outside_its_range(model, calibration, alpha):
    for refused in (
        lambda: calibration.selection(alpha),
        lambda: sr.calibrate(model, "gradient", noise_stills(2, 2), alphas=(0.1, alpha)),
    ):
        with pytest.raises(sr.InputError, match=r"\(0, 0.5\)"):
            refused()


def test_no_alpha_is_guessed(calibration):
    with pytest.raises(sr.InputError, match=r"alpha 0.02, only for 0.05, 0.01"):
        calibration.selection(0.02)


def test_too_few_clips(model):
    for stills, alphas in ((noise_stills(1, 1), (0.001,)), (noise_stills(2, 0), (0.1,)), (noise_stills(2, 2), ())):
        with pytest.raises(sr.InputError, match="too few"):
            sr.calibrate(model, "gradient", stills, alphas=alphas)
    with pytest.raises(sr.InputError, match="go with a method's name"):
        sr.calibrate(model, sr.build_method("gradcam", model), noise_stills(2, 2), layer="relu4b")


# Stills


def test_synthetic_stills_are_the_seeds_own(model):
    spec = model.spec
    one, same, other = (synthetic_stills(spec, 3, 2, seed) for seed in (0, 0, 1))
    pictures = [np.stack([*stills.fit, *stills.held_out]) for stills in (one, same, other)]
    assert pictures[0].shape == (5, 16, 16, 3)
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
    assert len({picture.tobytes() for picture in pictures[0]}) == 5


def test_a_video_serves_one_purpose(model, tmp_path):
    for number in range(4):
        write_mp4(tmp_path / f"{number}.mp4", np.full((6, 32, 32, 3), 60 * number, np.uint8), 20)
    stills = video_stills(model.spec, [tmp_path], 7, 3, seed=2)
    assert (len(stills.fit), len(stills.held_out), stills.source) == (7, 3, "4 videos")
    shades = [{round(frame.mean() / 60) for frame in part} for part in (stills.fit, stills.held_out)]
    assert not shades[0] & shades[1]
    assert shades[0] | shades[1] == {0, 1, 2, 3}
    with pytest.raises(sr.InputError, match="2 or more"):
        video_stills(model.spec, [tmp_path / "0.mp4"], 4, 2)


def test_frames_are_drawn_from_all_of_a_video(model, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for step in range(40):
            write_png(tmp_path / name / f"{step}.png", np.full((16, 16, 3), 6 * step, np.uint8))
    stills = video_stills(model.spec, [tmp_path / "a", tmp_path / "b"], 12, 100)
    steps = sorted(int(frame.mean()) // 6 for frame in stills.fit)
    assert len(set(steps)) == 12
    assert steps[-1] > 20
    assert len(stills.held_out) == 40  # there are no more


# The command line


def test_calibrate_and_explain(tmp_path, capsys):
    file, out = tmp_path / "a" / "gradient.json", tmp_path / "out"
    arguments = [*SMALL, "--method", "gradient", "--n-clips", "40", "--alpha", "0.05", "-o", str(file)]
    assert main(["calibrate", *arguments, "--json", str(tmp_path / "same.json")]) == 0
    printed = capsys.readouterr().out
    assert "40 still clips" in printed
    assert "alpha 0.05" in printed
    calibration = sr.Calibration.read(file)
    assert json.loads((tmp_path / "same.json").read_text()) == calibration.to_dict()

    explain = ["explain", *SMALL, "--preset", "calibrated", "--calibration", str(file), "--out", str(out)]
    assert main([*explain, "--alpha", "0.05", "--method", "gradient"]) == 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["preset"], summary["alpha"], summary["n_sigma"]) == ("calibrated", 0.05, None)
    assert not summary["warnings"]
    model = sr.load_model("networks:small_c3d", "own")
    with np.load(out / "explanation.npz") as arrays:
        clip = model.spec.clip(arrays["frames"][0])
        expected = sr.explain(model, clip, "gradient", selection=calibration.selection(0.05))
        assert np.array_equal(arrays["mask"], expected.mask)
        assert arrays["mask"].any()

    regions = ["--preset", "fdr", "--q", "0.3", "--calibration", str(file), "--method", "gradient", "--out", str(out)]
    assert main(["explain", *SMALL, *regions]) == 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["preset"], summary["q"], summary["n_sigma"]) == ("fdr", 0.3, None)
    assert "rate of false discoveries" in (out / "report.html").read_text(encoding="utf-8")
    with np.load(out / "explanation.npz") as arrays:
        expected = sr.explain(model, clip, "gradient", selection=calibration.region_selection(0.3))
        assert np.array_equal(arrays["mask"], expected.mask)
    assert main(["export", *SMALL, *regions[:-2], "-o", str(tmp_path / "a.onnx")]) == 2
    assert "torch alone" in capsys.readouterr().err

    refused = {
        "another method": [*explain, "--alpha", "0.05", "--method", "dtd"],
        "only for 0.05": [*explain, "--method", "gradient"],
        "must lie in (0, 0.5)": [*explain, "--alpha", "0.5", "--method", "gradient"],
        "give --alpha": [*explain, "--n-sigma", "4"],
        "missing.json": [*explain, "--calibration", str(tmp_path / "missing.json")],
        "no calibration ships": ["explain", *SMALL, "--preset", "calibrated", "--out", str(out)],
        "--q goes with": ["explain", *SMALL, "--q", "0.1", "--out", str(out)],
        "give --q": [*explain[:-4], "--preset", "fdr", "--n-sigma", "4"],
        "--alpha goes with": ["explain", *SMALL, "--alpha", "0.05", "--out", str(out)],
        "--calibration goes with": ["explain", *SMALL, "--calibration", str(file), "--out", str(out)],
    }
    for word, line in refused.items():
        assert main(line) == 2, word
        message = capsys.readouterr().err
        assert message.startswith("selrel: error: ")
        assert message.count("\n") == 1
        assert word in message


def test_a_calibration_that_does_not_hold_is_written_and_fails(tmp_path, capsys):
    file = tmp_path / "few.json"
    arguments = ["calibrate", *SMALL, "--method", "gradcam", "--n-clips", "2", "--alpha", "0.01", "-o", str(file)]
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith("selrel: check failed: alpha 0.01")
    assert message.count("\n") == 1
    out = tmp_path / "out"
    chosen = ["--method", "gradcam", "--preset", "calibrated", "--alpha", "0.01", "--calibration", str(file)]
    assert main(["explain", *SMALL, *chosen, "--out", str(out)]) == 0
    assert "held-out still clips" in capsys.readouterr().err


def test_calibrate_refuses_in_one_line(tmp_path, capsys):
    good = ["calibrate", *SMALL, "-o", str(tmp_path / "a.json")]
    (tmp_path / "file").touch()
    refused = {
        "(0, 0.5)": [*good, "--alpha", "0.6"],
        "'gradient'": [*good, "--method", "gradiant"],
        "2 or more": [*good, "--clips", str(tmp_path / "x.mp4")],
        "'--out'": ["calibrate", *SMALL],
        "file": ["calibrate", *SMALL, "-o", str(tmp_path / "file" / "a.json")],
        "too few": [*good, "--n-clips", "1", "--held-out", "2"],
    }
    for word, line in refused.items():
        assert main(line) == 2, word
        message = capsys.readouterr().err
        assert message.count("\n") == 1, message
        assert word in message
    assert not (tmp_path / "a.json").exists()


# What ships


def test_shipped_calibrations_fit_the_demo_model():
    model = sr.load_model("demo")
    assert "dtd" in shipped_for("demo")
    for method in shipped_for("demo"):
        calibration = sr.Calibration.shipped(sr.build_method(method, model))
        assert {0.01, 0.001} <= set(calibration.alphas)
        assert calibration.generator_version is not None


def test_the_embedded_clip_with_the_shipped_calibration(tmp_path):
    assert main(["explain", "--preset", "calibrated", "--out", str(tmp_path)]) == 0
    clip = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["clips"][0]
    assert clip["motion_mass"] > clip["frozen_mass"]
