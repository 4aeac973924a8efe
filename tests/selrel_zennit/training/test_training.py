"""A training learns, is the same for a seed, and ends the same wherever it was stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from selrel_zennit import ClipSpec, InputError, load_model, read_frames
from selrel_zennit.evaluate.dataset import read_dataset
from selrel_zennit.models.small3d import Small3D
from selrel_zennit.training import RECIPES, train
from training_videos import SPEC, write_videos

FILES = ("best.safetensors", "last.safetensors")


class Stopped(BaseException):
    """Stands for the end of the process: nothing in the program catches it."""


def small(num_classes=3):
    """A network of the user's."""
    model = Small3D(num_classes, width=4, spec=SPEC)
    model.reset_parameters(0)
    return model


def weights(folder):
    return {name: load_file(folder / name) for name in FILES}


def assert_same(folder, other):
    for name, tensors in weights(folder).items():
        again = load_file(other / name)
        assert list(tensors) == list(again)
        assert all(torch.equal(tensors[key], again[key]) for key in tensors)
    logs = [json.loads((place / "training.json").read_text()) for place in (folder, other)]
    for log in logs:
        del log["minutes"]
        for row in log["epochs"]:
            del row["minutes"]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    """A training that was never stopped."""
    out = tmp_path_factory.mktemp("whole")
    return train(read_dataset(videos), out, model=small, recipe=replace(RECIPES["small"], epochs=3, batch=6), seed=4)


def test_files_and_log(whole, data):
    names = {path.name for path in whole.folder.iterdir()}
    assert names == {*FILES, "checkpoint.pt", "training.json", "curves.png"}
    log = json.loads((whole.folder / "training.json").read_text())
    assert [row["epoch"] for row in log["epochs"]] == [1, 2, 3]
    assert log["settings"]["classes"] == ["down", "right", "still"]
    assert log["settings"]["chosen on"] == whole.chosen_on == "test"
    assert log["settings"]["videos"]["train"] == 12
    assert log["best"] == whole.best
    assert whole.last["accuracy"] == pytest.approx(log["epochs"][-1]["validation accuracy"])
    assert whole.best["accuracy"] == pytest.approx(max(row["validation accuracy"] for row in log["epochs"]))
    assert repr(whole).startswith("Trained(3 epochs in ")


def test_weights_say_what_they_are_for_and_score_what_the_log_says(whole, data):
    model = load_model(small, whole.folder / "best.safetensors")
    assert isinstance(model, Small3D)
    assert model.class_names == ["down", "right", "still"]
    assert (model.spec.frames, model.spec.stride, model.spec.crop) == (8, 2, 32)
    right = still = 0
    for item in data.part("test"):
        frames = read_frames(item.path)
        clip = model.spec.clip(frames, start=3)
        frozen = clip[:, :, 4:5].expand_as(clip)
        right += int(model(clip).argmax()) == data.index(item)
        still += int(model(frozen).argmax()) == data.index(item)
    assert whole.best == {"accuracy": right / 6, "frozen accuracy": still / 6}


@pytest.mark.parametrize(
    "moment", [7, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2, 4, 5, 8, 9, 12, 13, 14))]
)
def test_stopped_at_any_write_it_ends_the_same(whole, data, tmp_path, monkeypatch, moment):
    """Files appear by os.replace: a training that ends just before its N-th, and is then started again."""
    replaced, done = os.replace, 0

    def counted(*places):
        nonlocal done
        done += 1
        if done == moment:
            raise Stopped
        replaced(*places)

    recipe = replace(RECIPES["small"], epochs=3, batch=6)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted)
        with suppress(Stopped):
            train(data, tmp_path, model=small, recipe=recipe, seed=4)
    assert done >= min(moment, 12)
    train(data, tmp_path, model=small, recipe=recipe, seed=4)
    assert_same(whole.folder, tmp_path)


@pytest.mark.slow
def test_another_seed_is_another_training(whole, data, quick, tmp_path):
    train(data, tmp_path, model=small, recipe=quick, seed=5)
    ours, other = weights(whole.folder)["last.safetensors"], weights(tmp_path)["last.safetensors"]
    assert not torch.equal(ours["conv3a.weight"], other["conv3a.weight"])


def test_a_finished_training_is_not_repeated(whole, data, quick):
    before = (whole.folder / "checkpoint.pt").read_bytes()
    again = train(data, whole.folder, model=small, recipe=quick, seed=4)
    assert (whole.folder / "checkpoint.pt").read_bytes() == before
    assert again.best == whole.best
    assert again.minutes == whole.minutes


def test_other_settings_do_not_go_on_from_it(whole, data, quick):
    with pytest.raises(InputError, match="another training, with other recipe, seed: choose another --out"):
        train(data, whole.folder, model=small, recipe=replace(quick, epochs=4), seed=5)
    fewer = replace(data, videos=data.videos[1:])
    with pytest.raises(InputError, match="with other videos"):
        train(fewer, whole.folder, model=small, recipe=quick, seed=4)


def test_a_damaged_checkpoint_is_named(data, quick, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(InputError, match="no checkpoint of a training: remove it"):
        train(data, tmp_path, model=small, recipe=quick)


def test_what_a_killed_training_left_half_written_goes(data, quick, tmp_path):
    (tmp_path / ".checkpoint-0123abcd.pt").write_bytes(b"half")
    (tmp_path / "mine.pt").write_bytes(b"whole")
    train(data.only(["down"]), tmp_path, model=small, recipe=replace(quick, epochs=1))
    assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "mine.pt").exists()


@pytest.mark.slow
def test_it_learns(tmp_path):
    """Motion alone tells these classes apart: no single frame does."""
    data = read_dataset(write_videos(tmp_path / "videos", train=16, test=8))
    recipe = replace(RECIPES["small"], epochs=24, batch=12, flip=False, learning_rate=1e-2)
    trained = train(data, tmp_path / "out", model=small, recipe=recipe)
    assert trained.last["accuracy"] >= 20 / 24
    assert trained.last["frozen accuracy"] <= 12 / 24
    assert trained.rows[-1]["loss"] < trained.rows[0]["loss"]


def test_the_paper_recipe_runs_without_batch_norms(data, tmp_path):
    recipe = replace(RECIPES["paper"], epochs=2, batch=6)
    trained = train(data, tmp_path, model=small, recipe=recipe)
    log = json.loads((tmp_path / "training.json").read_text())
    # Channel means alone, of what the crop is taken out of.
    assert log["settings"]["spec"]["std"] == [1.0, 1.0, 1.0]
    assert all(50 < value < 90 for value in log["settings"]["spec"]["mean"])
    assert [row["rate"] for row in trained.rows] == [1e-3, 1e-3]


def test_fine_tuning_begins_with_the_network_it_is_given(whole, data, quick, tmp_path):
    """A rate of next to nothing leaves the first network's outputs, for the same classes; for others, its features."""
    slow = replace(quick, epochs=1, learning_rate=1e-12, weight_decay=0.0)
    first = whole.folder / "last.safetensors"
    train(data, tmp_path / "same", model=small, recipe=slow, initial=first)
    before, after = load_file(first), load_file(tmp_path / "same/last.safetensors")
    torch.testing.assert_close(after["fc.weight"], before["fc.weight"])
    train(data.only(["down", "still"]), tmp_path / "two", model=small, recipe=slow, initial=first)
    two = load_file(tmp_path / "two/last.safetensors")
    assert two["fc.weight"].shape == (2, 32)
    # Up to a batch norm's running statistics, which move a little with each batch.
    torch.testing.assert_close(two["conv1.weight"], before["conv1.weight"], rtol=0.2, atol=0.02)


def test_weights_of_another_network_are_refused(data, quick, tmp_path):
    save_file({"conv1.weight": torch.zeros(4, 3, 3, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="does not fit the network: 1 of 14 tensors do"):
        train(data, tmp_path / "out", model=small, recipe=quick, initial=tmp_path / "other.safetensors")


def fixed():
    """A network for two classes, whatever the data has."""
    model = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 2))
    model.spec = SPEC
    return model


def test_a_network_that_takes_no_number_of_classes(data, quick, tmp_path):
    with pytest.raises(InputError, match="gives \\[2\\] values for a clip and the data has 3 classes"):
        train(data, tmp_path / "three", model=fixed, recipe=quick)
    trained = train(data.only(["down", "right"]), tmp_path / "two", model=fixed, recipe=replace(quick, epochs=1))
    assert load_model(fixed, trained.folder / "best.safetensors").class_names == ["down", "right"]


def test_a_loss_that_is_no_number_ends_it(data, quick, tmp_path):
    recipe = replace(quick, learning_rate=1e30, schedule="plateau", optimizer="sgd", gradient=None, epochs=9)
    with pytest.raises(InputError, match=r"no number any more in epoch .: take a lower --learning-rate"):
        train(data, tmp_path, model=small, recipe=replace(recipe, batch_norms=False))


def test_splits_and_classes_that_are_not_there(data, quick, tmp_path):
    with pytest.raises(InputError, match="has no split validation or validate or val or test"):
        train(data.part("train"), tmp_path, model=small, recipe=quick)
    lacking = replace(data, videos=tuple(item for item in data if (item.split, item.label) != ("train", "still")))
    with pytest.raises(InputError, match="no video to train on of 'still'"):
        train(lacking, tmp_path, model=small, recipe=quick)


def test_a_folder_that_cannot_be_written_is_said_first(data, quick, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file"):
        train(data, tmp_path / "file", model=small, recipe=quick)


def written(folder):
    """Say what lies in a folder, and since when."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*")}


@pytest.mark.slow
def test_killed_five_times_it_ends_the_same(videos, tmp_path):
    """SIGKILL, by the clock: wherever it happens to be, half-written files included."""
    command = [sys.executable, "-m", "selrel_zennit", "train", str(videos), "--threads", "1", "--epochs", "12"]
    command += ["--batch", "6", "--crop", "32", "--frames", "8", "--stride", "2"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, **quiet)
    out, kills = tmp_path / "killed", 0
    for moment in (0.1, 0.7, 0.3, 0.5, 0.2):
        process = subprocess.Popen([*command, "--out", str(out)], **quiet)
        before = written(out)
        while process.poll() is None and written(out) == before:
            time.sleep(0.01)
        # From the first thing that this process has written.
        time.sleep(moment / 2)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 5
    subprocess.run([*command, "--out", str(out)], check=True, **quiet)
    assert_same(tmp_path / "whole", out)


def test_a_spec_of_its_own_is_what_the_network_takes(data, quick, tmp_path):
    spec = ClipSpec(frames=4, stride=3, short_side=(32, 32), crop=32)
    train(data.only(["down"]), tmp_path, model=small, recipe=replace(quick, epochs=1), spec=spec)
    model = load_model(small, tmp_path / "best.safetensors")
    assert model.num_classes == 1
    assert (model.spec.frames, model.spec.stride, model.spec.short_side) == (4, 3, (32, 32))
