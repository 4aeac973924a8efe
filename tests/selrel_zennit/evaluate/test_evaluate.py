"""What is measured of a network and its methods on labelled videos: against slow versions, resumed, and refused."""

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import selrel_zennit as sr
from selrel_zennit.cli import main
from selrel_zennit.clips.cutting import freeze
from selrel_zennit.evaluate import Settings, evaluate, optical_flow, read_dataset
from selrel_zennit.evaluate.measures import ANSWERS, box_mask, covered, other_boxes
from selrel_zennit.evaluate.run import measure_all
from selrel_zennit.evaluate.statistics import compared, interval
from selrel_zennit.evaluate.store import Store
from selrel_zennit.evaluate.tables import Table
from selrel_zennit.synthetic import SyntheticSpec, make_clip
from small_video_network import SOURCE, small

METHODS = ("gradient", "gradcam", "random")


@pytest.fixture(scope="module")
def evaluation(weights):
    model = network(weights)
    return evaluate(model, SOURCE, METHODS, levels=(1.0, 4.0)), model


def network(weights):
    return sr.load_model(small, weights)


def clip_of(model, index=0):
    return make_clip(SyntheticSpec(frames=8, height=32, width=32), 33, index)


def row_of(evaluation, method, index=0):
    return next(
        row for row in evaluation.rows if row["method"] == method and row["video"].startswith(f"test/{index:05d}")
    )


def test_scores_equal_the_definitions_written_out(evaluation):
    found, model = evaluation
    clip = clip_of(model)
    explained = sr.explain(model, model.spec.clip(clip.frames), "gradient", selection=sr.MotionSelection(n_sigma=1.0))
    relevance, mask = explained.relevance[0].astype(float), explained.mask[0]
    row = row_of(found, "gradient")
    assert row["area 1σ"] == pytest.approx((mask & (relevance != 0)).sum() / (relevance != 0).sum())
    assert row["mass 1σ"] == pytest.approx(np.abs(relevance)[mask].sum() / np.abs(relevance).sum())
    assert row["causal_mass"] == pytest.approx(np.abs(relevance)[clip.causal_mask].sum() / np.abs(relevance).sum())
    for flow, name in ((clip.flow, "exact"), (optical_flow(clip.frames, "farneback"), "farneback")):
        hits = total = moving = 0
        for t in range(7):
            speed = np.hypot(flow[t, ..., 0].astype(float), flow[t, ..., 1])
            for y in range(32):
                for x in range(32):
                    flows = speed[y, x] > speed.std()
                    moving += flows
                    if relevance[t, y, x] > 0 and relevance[t, y, x] >= relevance.max() * 10 / 255:
                        total += 1
                        hits += flows
        assert row[f"precision {name}"] == pytest.approx(hits / total)
        assert row[f"base rate {name}"] == pytest.approx(moving / (7 * 32 * 32))
        assert row[f"lift {name}"] == pytest.approx(hits / total / (moving / (7 * 32 * 32)))


def test_agreement_is_intersection_over_union(evaluation):
    found, model = evaluation
    clip = model.spec.clip(clip_of(model).frames)
    maps = [sr.explain(model, clip, name).relevance[0] for name in ("gradient", "gradcam")]
    first, second = ({tuple(at) for at in np.argwhere((one > 0) & (one >= one.max() * 10 / 255))} for one in maps)
    assert row_of(found, "gradient / gradcam")["agreement"] == pytest.approx(len(first & second) / len(first | second))


def test_answers_equal_forward_passes(evaluation):
    found, model = evaluation
    pixels = clip_of(model).frames

    def margins(frames):
        logits = model(model.spec.clip(frames)).double()[0]
        top = int(model(model.spec.clip(pixels))[0].argmax())
        return float(logits[top] - (logits.sum() - logits[top]) / 7)

    row = row_of(found, ANSWERS)
    stills = [margins(np.repeat(frame[None], 8, axis=0)) for frame in pixels]
    assert row["margin"] == pytest.approx(margins(pixels), rel=1e-5)
    assert row["motion"] == pytest.approx(margins(pixels) - np.mean(stills), abs=1e-5)
    assert row["margin reversed"] == pytest.approx(margins(pixels[::-1].copy()), rel=1e-5)
    assert row["margin frozen"] == pytest.approx(margins(freeze(pixels)), rel=1e-5)
    assert row["least frozen"] == pytest.approx(min(stills), rel=1e-5)
    with torch.no_grad():
        blank = model(torch.zeros(1, *model.spec.shape)).double()[0]
    top = row["predicted"]
    assert row["blank"] == pytest.approx(float(blank[top] - (blank.sum() - blank[top]) / 7), rel=1e-5)
    assert row["still"] == pytest.approx(np.mean(stills) - row["blank"], abs=1e-5)


def test_tables_hold_means_over_videos(evaluation):
    found, _ = evaluation
    table = found.table("selectivity")
    row = next(row for row in table.rows if row[:2] == ("gradcam", "4σ"))
    values = [one["mass 4σ"] for one in found.rows if one["method"] == "gradcam" and not math.isnan(one["mass 4σ"])]
    assert row[3].mean == pytest.approx(np.mean(values))
    assert row[3].low <= row[3].mean <= row[3].high
    assert row[4:] == ("4.7 %", "2.6 %")  # Hiley et al. 2020, table 3
    names = [table.name for table in found.tables()]
    assert names == [
        "audit", "planted", "precision_farneback", "precision_dis", "precision_exact", "agreement", "selectivity",
        "overhead",
    ]  # fmt: skip
    audit = found.table("audit").rows[0]
    answers = [one for one in found.rows if one["method"] == ANSWERS]
    assert audit[1].mean == np.mean([one["right"] for one in answers])
    assert r"\begin{tabular}{lrrrrr}" in found.to_latex()
    assert "gradcam,4σ," in found.to_csv()
    with pytest.raises(sr.InputError, match=r"no table named 'audits' \(did you mean 'audit'"):
        found.table("audits")
    with pytest.raises(sr.InputError, match="random has no score 'drop covered'"):
        found.compare("random", "gradcam", "drop covered")
    difference, p = found.compare("gradient", "random", "lift exact")
    assert difference.videos == 4
    assert 0 < p <= 1


def test_text_of_tables():
    table = Table("t", "A title", "Said.", ("a_b", "value"), (("x_1", interval([0.1, 0.3])), ("y", None)))
    assert table.to_markdown().splitlines()[-2:] == ["| x_1 | 20.0 % [10.0, 30.0] |", "| y | – |"]
    assert r"a\_b & value \\" in table.to_latex()
    assert table.to_csv().splitlines()[0] == "a_b,value,value low,value high"


def test_intervals_and_comparisons():
    rng = np.random.default_rng(1)
    values = rng.normal(3.0, 1.0, 400)
    found = interval(values.tolist())
    assert found.mean == pytest.approx(values.mean())
    # A mean's 95 % interval is 1.96 standard errors to each side.
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    same = {str(at): value for at, value in enumerate(values)}
    more = {key: value + 0.1 + 0.2 * rng.normal() for key, value in same.items()}
    difference, p = compared(more, same)
    assert difference.mean == pytest.approx(0.1, abs=0.03)
    assert p < 0.01
    noise = {key: value + 0.2 * sign for (key, value), sign in zip(same.items(), rng.choice([-1, 1], 400), strict=True)}
    assert compared(noise, same)[1] > 0.02
    with pytest.raises(sr.InputError, match="no video in common"):
        compared({"a": 1.0}, {"b": 1.0})


def test_boxes():
    frames = np.random.default_rng(0).integers(0, 255, (4, 40, 60, 3), np.uint8)
    made = covered(frames, (10, 5, 20, 15))
    assert (made[:, 5:15, 10:20] == made[:, 5:6, 10:11]).all()
    outside = np.ones((40, 60), bool)
    outside[5:15, 10:20] = False
    assert (made[:, outside] == frames[:, outside]).all()
    others = other_boxes((10, 5, 20, 15), (40, 60), 8, np.random.default_rng(0))
    assert len(others) == 8
    for left, top, right, bottom in others:
        assert (right - left, bottom - top) == pytest.approx((10, 10))
        assert left >= 0
        assert right <= 60
        assert max(0, 10 - abs(left - 10)) * max(0, 10 - abs(top - 5)) <= 10
    assert not other_boxes((0, 0, 60, 40), (40, 60), 8, np.random.default_rng(0))
    mask = box_mask((0, 0, 30, 40), (40, 60), sr.ClipSpec(frames=2, short_side=40, crop=40))
    # The crop leaves 10 of 60 columns out on the left.
    assert mask[:, :, :20].all()
    assert not mask[:, :, 20:].any()


def test_what_is_stored_is_not_measured_again(tmp_path, weights):
    model = network(weights)
    first = evaluate(model, SOURCE, ("gradient", "random"), store=tmp_path)
    assert (first.done.clips, first.done.known) == (4, 0)
    parts = Store(tmp_path).parts()
    again = evaluate(model, SOURCE, ("gradient", "random"), store=tmp_path)
    assert (again.done.clips, again.done.known) == (0, 4)
    assert Store(tmp_path).parts() == parts
    assert repr(again.rows) == repr(first.rows)
    # Half of it lost: the same rows, but for the times.
    for part in parts[:2]:
        part.unlink()
    mended = evaluate(model, SOURCE, ("gradient", "random"), store=tmp_path)
    assert (mended.done.clips, mended.done.known) == (2, 2)
    assert repr([untimed(row) for row in mended.rows]) == repr([untimed(row) for row in first.rows])
    # One method more is all that is measured.
    more = evaluate(model, SOURCE, METHODS, store=tmp_path)
    assert {row["method"] for row in more.rows} > {"gradcam", "gradient / gradcam", "gradcam / random"}
    assert len(more.rows) == len(first.rows) + 4 * 3
    # Another network has rows of its own.
    other = network(weights)
    with torch.no_grad():
        other.conv1.weight.mul_(1.01)
    assert evaluate(other, SOURCE, ("gradient",), store=tmp_path).done.clips == 4


def untimed(row):
    return {key: value for key, value in row.items() if " ms" not in key}


def test_a_damaged_part_is_named(tmp_path):
    Store(tmp_path).append([{"digest": "d", "start": 0, "network": "n", "method": "m", "settings": "s"}])
    assert Store(tmp_path).keys() == {("d", 0, "n", "m", "s")}
    Store(tmp_path).parts()[0].write_bytes(b"PAR1 and no more")
    with pytest.raises(sr.InputError, match=r"is damaged .*: remove it, and its clips are measured again"):
        Store(tmp_path).keys()


def test_videos_that_cannot_be_read_are_left_out(tmp_path, weights):
    for name in ("left/a.mp4", "right/b.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"no video")
    data = read_dataset(tmp_path)
    settings = Settings("x", methods=("random",), audit=False)
    with pytest.raises(sr.InputError, match="none of 2 videos can be measured"):
        measure_all(data, Store(tmp_path / "rows"), settings, model=network(weights))


@pytest.mark.slow
def test_a_video_on_which_workers_die_is_left_out(tmp_path, weights, monkeypatch):
    data = read_dataset(SOURCE)
    darkest = min(network(weights).spec.clip(video.frames()).mean().item() for video in data)
    monkeypatch.setenv("DEADLY_BELOW", str(darkest + 1e-4))
    monkeypatch.setenv("DEADLY", "always")
    tests = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))
    named = {"model": "small_video_network:deadly", "weights": str(weights)}
    settings = Settings(SOURCE, **named, methods=("gradient",), audit=False)
    done = measure_all(data, Store(tmp_path / "rows"), settings, workers=2)
    rows = Store(tmp_path / "rows").rows()
    assert len({row["video"] for row in rows}) == len(rows) == 3
    (why,) = done.failed.values()
    assert re.search(r": the worker died [23] times \(out of memory\?\)$", why)


def test_the_command(tmp_path, weights, capsys):
    out = tmp_path / "out"
    run = ["evaluate", SOURCE.replace("test=4", "test=2"), "--model", "small_video_network:small", "--weights"]
    run += [str(weights), "--methods", "gradient,random", "--flows", "dis", "--levels", "1", "--out", str(out)]
    assert [main([*run, "--shard", f"{place}/2"]) for place in (0, 1)] == [0, 0]
    assert capsys.readouterr().out.count("1 clips measured, 0 were there") == 2
    assert not (out / "tables.md").exists()
    assert main([*run, "--json", str(tmp_path / "t.json")]) == 0
    assert "0 clips measured, 2 were there" in capsys.readouterr().out
    for name in ("tables.md", "tables.json", "tables.csv", "tables.tex", "report.html", "settings.toml"):
        assert (out / name).stat().st_size > 0
    page = (out / "report.html").read_text()
    assert page.count("<video") == 2
    assert "http" not in page
    tables = json.loads((tmp_path / "t.json").read_text())
    assert tables["audit"]["rows"][0][0] == "all"
    assert main(["evaluate", "--settings", str(out / "settings.toml"), "--out", str(out)]) == 0
    assert "0 clips measured, 2 were there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a DATASET"),
        (["synthetic", "--methods", "gradcm"], "gradcm"),
        (["synthetic", "--flows", "farnback"], "did you mean 'farneback'"),
        (["synthetic", "--levels", "two"], "--levels takes numbers"),
        (["synthetic", "--levels", "0"], "above 0"),
        (["synthetic", "--shard", "2/2"], "--shard takes I/N"),
        (["synthetic", "--split", "tets"], "no split 'tets'"),
        (["synthetic", "--settings", "nowhere.toml"], "no TOML file of settings"),
    ],
)
def test_what_is_refused(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_classes_that_are_not_the_networks(tmp_path, weights):
    for name in ("left/a.mp4", "upwards/b.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(sr.InputError, match=r"the network has no class 'upwards'"):
        evaluate(network(weights), tmp_path, ("random",))
