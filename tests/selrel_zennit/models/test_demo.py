"""The demo model that ships: it must name the motion, whatever the scene, and nothing without motion."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import selrel_zennit as sr
from selrel_zennit.models import demo
from selrel_zennit.synthetic import CLASSES, GENERATOR_VERSION, SyntheticSpec, dataset, demo_clip, frozen
from selrel_zennit.synthetic.motion import opposite

ROOT = Path(__file__).resolve().parents[3]
WEIGHTS = Path(demo.__file__).with_name("demo.safetensors")
RESULTS = ROOT / "benchmarks" / "results" / "demo_training.json"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return sr.load_model("demo")


def predictions(model: nn.Module, clips: list[np.ndarray]) -> np.ndarray:
    """Classes of clips uint8 [T,H,W,3], eight at a time: on one thread a batch of one is ten times slower."""
    batches = [np.stack(clips[first : first + 8]) for first in range(0, len(clips), 8)]
    with torch.no_grad():
        return np.concatenate([model(torch.from_numpy(model.spec.from_pixels(batch))).argmax(1) for batch in batches])


@pytest.mark.parametrize(
    "opposed", [pytest.param(False, marks=pytest.mark.slow), True], ids=["uncorrelated", "opposed"]
)
def test_it_names_the_motion_of_fresh_clips(model: nn.Module, opposed: bool) -> None:
    clips = list(dataset(SyntheticSpec(shake=1, opposed=opposed), 77, 80))
    found = predictions(model, [clip.frames for clip in clips])
    labels = np.array([clip.class_index for clip in clips])
    assert (found == labels).mean() >= 0.95


def test_it_sees_motion_and_nothing_else(model: nn.Module) -> None:
    clips = list(dataset(SyntheticSpec(), 78, 40))
    labels = np.array([clip.class_index for clip in clips])
    still = predictions(model, [frozen(clip.frames) for clip in clips])
    assert (still == labels).mean() <= 0.3
    backwards = predictions(model, [clip.frames[::-1] for clip in clips])
    assert (backwards == [opposite(label) for label in labels]).mean() >= 0.9


def test_it_names_the_embedded_clip(model: nn.Module) -> None:
    clip = demo_clip()
    with torch.no_grad():
        probability = model(model.spec.clip(clip.frames)).softmax(1)[0]
    assert probability[clip.class_index] > 0.95


def test_the_network_is_plain_and_small(model: nn.Module) -> None:
    kinds = {type(module).__name__ for module in model.children()}
    assert kinds == {"Conv3d", "ReLU", "MaxPool3d", "Flatten", "Linear", "Dropout"}
    assert model.class_names == list(CLASSES)
    assert model.spec == sr.ClipSpec()
    assert WEIGHTS.stat().st_size < 4_000_000


def test_the_training_record_belongs_to_these_weights_and_this_generator() -> None:
    record = json.loads(RESULTS.read_text())
    assert record["weights_sha256"] == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert record["generator_version"] == GENERATOR_VERSION
    for split in ("uncorrelated", "opposed"):
        assert record[split]["whole"]["accuracy"] >= 0.95
        assert record[split]["whole"]["n"] >= 1000
    frame = record["single_frame"]
    assert abs(frame["accuracy"] - 1 / len(CLASSES)) < 0.02
    assert frame["low"] <= 1 / len(CLASSES) <= frame["high"]
