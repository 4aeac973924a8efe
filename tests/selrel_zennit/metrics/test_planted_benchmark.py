"""benchmarks/planted.py and its tables, on a few clips of a network with random weights."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from selrel_zennit import METHODS, ClipSpec, MotionSelection, build_method, load_model, one_hot
from selrel_zennit.synthetic import SyntheticSpec, make_clip

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def planted():
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("planted")
    sys.path.remove(str(BENCHMARKS))
    for name in ("planted", "tables", "machine"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def run(planted, tmp_path_factory):
    """Return a function that runs the quick benchmark, always in the same folder, and gives its results."""
    folder = tmp_path_factory.mktemp("planted")

    def once(*arguments):
        settings = [
            "--quick",
            "--methods",
            "gradient",
            "--weights",
            "random",
            "--threads",
            str(torch.get_num_threads()),
        ]
        places = ["--cache", str(folder / "cache"), "--out", str(folder / "planted.json")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["planted.py", *settings, *places, *arguments])
            planted.main()
        return json.loads((folder / "planted.json").read_text("utf-8")), folder

    once()
    return once


def test_scores_are_those_of_a_second_look(planted, run):
    """One clip again, from the definitions: a sort for the competitor, sums for the rest."""
    _, folder = run()
    rows = json.loads((folder / "cache" / "gradient.json").read_text("utf-8"))["rows"]
    model, clip = load_model("demo", "random"), make_clip(SyntheticSpec(), planted.SEED, 2)
    inputs = model.spec.clip(clip.frames)
    logits = model(inputs)[0]
    target = int(logits.argmax())
    still = model.spec.clip(np.repeat(clip.frames[8:9], 16, axis=0))
    runner_up = int(logits.argsort(descending=True)[1])

    def explained(clip, label):
        return build_method("gradient", model)(clip, one_hot(label, 8))[1].sum(1).numpy()

    relevance = explained(inputs, target)
    frozen, other = explained(still, target).astype(np.float64), explained(inputs, runner_up)
    motion, mask = MotionSelection(n_sigma=2)(relevance)
    other_mask = MotionSelection(n_sigma=2)(other)[1]
    size, motion = np.abs(relevance[0].astype(np.float64)), np.abs(motion[0].astype(np.float64))
    top = np.argsort(-size.ravel())[: int((motion > 0).sum())]
    near = np.stack([clip.causal_mask[max(t - 1, 0) : t + 2].any(0) for t in range(16)])
    expected = {
        "area": (mask[0] & (size > 0)).sum() / (size > 0).sum(),
        "mass": motion.sum() / size.sum(),
        "frozen_mass": np.abs(MotionSelection(n_sigma=2)(frozen)[0]).sum() / np.abs(frozen).sum(),
        "class_mask_iou": (mask & other_mask).sum() / (mask | other_mask).sum(),
        "causal_mass": motion[clip.causal_mask].sum() / motion.sum(),
        "distractor_mass": motion[clip.distractor_mask].sum() / motion.sum(),
        "causal_precision": ((motion > 0) & clip.causal_mask).sum() / (motion > 0).sum(),
        "swept_mass": motion[near].sum() / motion.sum(),
        "top_swept_mass": (size * near).ravel()[top].sum() / size.ravel()[top].sum(),
        "top_causal_mass": (size * clip.causal_mask).ravel()[top].sum() / size.ravel()[top].sum(),
        "top_distractor_mass": (size * clip.distractor_mask).ravel()[top].sum() / size.ravel()[top].sum(),
        "top_causal_precision": clip.causal_mask.ravel()[top].mean(),
    }
    assert {name: rows["default 2σ"][name][2] for name in expected} == pytest.approx(expected, rel=1e-3)
    alike = np.corrcoef(relevance.ravel(), other.ravel())[0, 1]  # both means are almost zero: nearly the cosine
    assert rows["none"]["class_cosine"][2] == pytest.approx(alike, abs=0.01)
    scores = {name: values[2] for name, values in rows["default 2σ"].items()}
    for name in ("causal_mass", "swept_mass", "distractor_mass", "causal_precision"):
        assert scores[f"{name}_gain"] == pytest.approx(scores[name] - scores[f"top_{name}"])


def test_means_and_tables_come_from_the_scores(run):
    result, folder = run()
    rows = json.loads((folder / "cache" / "gradient.json").read_text("utf-8"))["rows"]
    got = result["methods"]["gradient"]["rows"]["default 2σ"]["causal_mass"]
    values = rows["default 2σ"]["causal_mass"]
    assert got["n"] == len(values) == 4
    assert got["mean"] == pytest.approx(np.mean(values), rel=1e-4)
    assert min(values) <= got["low"] <= got["mean"] <= got["high"] <= max(values)
    table = (folder / "planted.md").read_text("utf-8").split("## Selection: default 2σ")[1]
    line = next(line for line in table.splitlines() if line.startswith("| gradient |"))
    assert line.split("|")[4].strip().startswith(f"{100 * np.mean(values):.1f} [")


def test_tables_are_made_anew_from_the_results(run, monkeypatch):
    _, folder = run()
    tables, table = sys.modules["tables"], folder / "planted.md"
    before = table.read_text("utf-8")
    table.unlink()
    monkeypatch.setattr(tables, "RESULTS", folder)
    for arguments in ([], ["planted"]):
        monkeypatch.setattr(sys, "argv", ["tables.py", *arguments])
        tables.main()
        assert table.read_text("utf-8") == before
    monkeypatch.setattr(sys, "argv", ["tables.py", "planned"])
    with pytest.raises(SystemExit):
        tables.main()


def test_the_cache_is_used_until_something_changes(planted, run, monkeypatch):
    def measured_again(*_):
        raise RuntimeError("measured again")

    before, _ = run()
    monkeypatch.setattr(planted, "measure", measured_again)
    assert run()[0]["methods"] == before["methods"]
    monkeypatch.setattr(planted, "add_code", lambda name, files: files.add(Path(__file__)))
    with pytest.raises(RuntimeError, match="measured again"):
        run()
    assert run("--keep")[0]["methods"] == before["methods"]
    monkeypatch.setattr(planted, "SEED", 7)
    with pytest.raises(RuntimeError, match="measured again"):
        run("--keep")


def test_the_fingerprint_covers_the_code(planted):
    files = set()
    planted.add_code(METHODS["dtd"].build.__module__, files)
    assert {"gradient.py", "base.py", "composites.py", "spec.py"} <= {path.name for path in files}
    assert "cam.py" not in {path.name for path in files}
    planted.add_code(MotionSelection.__module__, files)
    assert {"selections.py", "reference.py"} <= {path.name for path in files}


class Stub(torch.nn.Module):
    """Names every clip of the benchmark's seed whose index is even rightly, and every other wrongly."""

    def __init__(self, seed, spec):
        super().__init__()
        self.weight, self.spec, self.asked = torch.nn.Parameter(torch.zeros(1)), ClipSpec(), 0
        self.seed, self.clips = seed, spec

    def forward(self, clip):
        logits = torch.zeros(len(clip), 8)
        for row in logits:
            right = make_clip(self.clips, self.seed, self.asked).class_index
            row[right if self.asked % 2 == 0 else right ^ 1] = 2
            row[(right + 3) % 8] = 1
            self.asked += 1
        return logits


def test_only_clips_named_rightly_are_taken(planted):
    spec = SyntheticSpec()
    chosen, drawn = planted.choose(Stub(planted.SEED, spec), spec, 5, wrong_too=False)
    assert [one.index for one in chosen] == [0, 2, 4, 6, 8]
    assert drawn == 9
    for one in chosen:
        right = make_clip(spec, planted.SEED, one.index).class_index
        assert (one.target, one.other) == (right, (right + 3) % 8)
    every, drawn = planted.choose(Stub(planted.SEED, spec), spec, 5, wrong_too=True)
    assert ([one.index for one in every], drawn) == ([0, 1, 2, 3, 4], 5)


def test_intervals_hold_the_mean_as_often_as_they_say(planted):
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        found = planted.interval([*rng.exponential(size=100).tolist(), float("nan")])
        assert found["n"] == 100
        held += found["low"] <= 1 <= found["high"]
    assert 0.88 <= held / 200 <= 0.99
    assert planted.interval([float("nan")]) == {"mean": None, "low": None, "high": None, "n": 0}


def test_the_verdict_follows_the_interval(planted):
    tables = sys.modules["tables"]
    value = {"mean": 0.1, "low": 0.02, "high": 0.2}
    assert tables.outcome(value) == "more"
    assert tables.difference(value) == "**+10.0** [+2.0, +20.0]"
    assert tables.outcome({"mean": -0.1, "low": -0.2, "high": -0.02}) == "less"
    assert tables.difference({"mean": 0.1, "low": -0.02, "high": 0.2}) == "+10.0 [-2.0, +20.0]"
    assert tables.difference({"mean": None, "low": None, "high": None}) == "–"
