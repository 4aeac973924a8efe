"""The one loop over a video: clips come one by one, from an explainer of any kind, in memory that does not grow."""

from __future__ import annotations

import contextlib
import tracemalloc

import numpy as np
import pytest
import torch

import selrel_zennit as sr
from networks import few_layers
from selrel_zennit.explanation import Explanation
from selrel_zennit.loop import Condition, Explained, explain_clips
from selrel_zennit.outputs.files import write_outputs
from selrel_zennit.pipeline import ModelExplainer, explain_video
from selrel_zennit.progress import watched
from selrel_zennit.spill import StoredClips

SPEC = sr.ClipSpec(frames=4, short_side=16, crop=16)


def video(clips: int, seed: int = 0) -> np.ndarray:
    """Frames of ``clips`` clips of 4; the middle frame of clip i has the grey value 10·i + 20."""
    frames = np.random.default_rng(seed).integers(0, 256, (4 * clips, 16, 16, 3), dtype=np.uint8)
    for index in range(clips):
        frames[4 * index + 2] = (10 * index + 20) % 256
    return frames


class Plain:
    """An explainer without a network: the logits are means of colours, the relevance is the red channel."""

    spec, info, notes, forward_alone = SPEC, {"method": "red", "model": "plain"}, ["plain"], True

    def __init__(self, batch: int = 1) -> None:
        self.batch, self.calls, self.inside, self.most = batch, [], False, 0

    def __enter__(self) -> Plain:
        self.inside = True
        return self

    def __exit__(self, *raised: object) -> None:
        self.inside = False

    def logits(self, clips):
        self.calls.append(("logits", [clip.start for clip in clips]))
        assert self.inside
        return np.stack([clip.pixels.mean((0, 1, 2)) / 20 for clip in clips]).astype(np.float32)

    def explain(self, clips, target):
        self.calls.append(("explain", [clip.start for clip in clips]))
        self.most = max(self.most, len(clips))
        assert self.inside
        made = []
        for clip in clips:
            logits = (clip.pixels.mean((0, 1, 2)) / 20).astype(np.float32)[None]
            relevance = clip.pixels[None, ..., 0].astype(np.float32)
            mask = relevance > 100
            chosen = np.array([logits.argmax() if target in ("top1", -1) else target])
            found = Explanation(logits, chosen, relevance, np.where(mask, relevance, 0).astype(np.float32), mask)
            made.append(Explained(found, {"forward_backward": 0.0, "select": 0.0}))
        return made

    def shares(self, clips, targets):
        assert all((clip.pixels == clip.pixels[:1]).all() and (clip.frames == clip.frames[:1]).all() for clip in clips)
        assert len(targets) == len(clips)
        return [one.explanation.motion_share() for one in self.explain(clips, targets[0])]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_every_clip_comes_once_whatever_the_batch(batch):
    frames = video(5)
    stream = explain_clips(frames, Plain(batch), 1, all_clips=True)
    clips = list(stream)
    assert [clip.start for clip in clips] == [0, 4, 8, 12, 16]
    for index, clip in enumerate(clips):
        assert np.array_equal(clip.explanation.frames[0], frames[4 * index : 4 * index + 4])
        assert np.array_equal(clip.explanation.relevance[0], frames[4 * index : 4 * index + 4, ..., 0])
        assert clip.explanation.target.tolist() == [1]
        # Frozen to the middle frame, which is one grey value: all of it is kept, or nothing.
        assert clip.frozen_share.mass.tolist() == [float(10 * index + 20 > 100)]
        assert {"read", "forward_backward", "select", "frozen"} == set(clip.seconds)
    assert stream.notes[-1] == "plain"
    assert stream.info == Plain.info


def test_the_top_class_is_that_of_the_mean_logits_of_clips_that_are_explained():
    """Clip 0 is loudest in blue by far, the two others in green: with the condition it is left out."""
    frames = np.zeros((12, 16, 16, 3), np.uint8)
    frames[:4, ..., 2], frames[4:, ..., 1], frames[4:, ..., 0] = 250, 60, 30
    frames[::2, 0, 0] = 1
    every = list(explain_clips(frames, Plain(), all_clips=True, frozen=False))
    assert [int(clip.explanation.target[0]) for clip in every] == [2, 2, 2]
    explainer = Plain()
    stream = explain_clips(frames, explainer, all_clips=True, frozen=False, when=Condition(1, 0.5))
    assert [(clip.start, int(clip.explanation.target[0])) for clip in stream] == [(4, 1), (8, 1)]
    assert [(one.start, one.met) for one in stream.seen] == [(0, False), (4, True), (8, True)]
    assert "2 of 3 clips explained: those whose probability reaches 0.5" in stream.notes
    assert [starts for name, starts in explainer.calls if name == "explain"] == [[4], [8]]


def test_nothing_is_read_or_explained_before_it_is_asked_for():
    explainer = Plain()
    stream = explain_clips(video(6), explainer, 0, all_clips=True, frozen=False)
    assert not explainer.calls
    next(stream)
    assert explainer.calls == [("explain", [0])]
    assert explainer.inside
    del stream
    assert not explainer.inside


def test_an_explainer_is_left_after_an_error_too():
    explainer = Plain()
    explainer.shares = lambda clips, targets: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(explain_clips(video(2), explainer, 0))
    assert not explainer.inside


def test_clips_that_are_cut_already_are_explained_again_without_the_video():
    model, frames = few_layers(), np.random.default_rng(1).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    kept = StoredClips.of(explain_clips(frames, ModelExplainer(model, "gradient"), 0, all_clips=True))
    again = list(explain_clips(kept.again, ModelExplainer(model, "dtd"), frozen=False, all_clips=True))
    right = explain_video(model, frames, "dtd", all_clips=True, frozen=False)
    assert [clip.start for clip in again] == right.starts == [0, 8, 16]
    for clip, expected in zip(again, right, strict=True):
        assert np.array_equal(clip.explanation.relevance, expected.explanation.relevance)
        assert np.array_equal(clip.explanation.target, expected.explanation.target)


def test_an_attributor_on_a_video_is_explain_on_each_clip():
    model, frames = few_layers(), np.random.default_rng(1).integers(0, 256, (19, 16, 16, 3), dtype=np.uint8)
    stream = explain_clips(frames, ModelExplainer(model, "gradient", motion="middle"), all_clips=True)
    clips = list(stream)
    with torch.no_grad():
        logits = [model(model.spec.clip(frames, start)) for start in (0, 8)]
    target = int(torch.cat(logits).mean(0).argmax())
    for start, clip in zip((0, 8), clips, strict=True):
        right = sr.explain(model, model.spec.clip(frames, start), "gradient", target, motion="middle")
        assert np.array_equal(clip.explanation.relevance, right.relevance)
        assert np.array_equal(clip.explanation.split.motion_part, right.split.motion_part)
        still = model.spec.clip(frames[start + 4][None].repeat(8, 0))
        assert clip.frozen_share == sr.explain(model, still, "gradient", target).motion_share()
    assert stream.notes == ["frames 16…18, the last, are no whole clip and left out"]
    assert stream.info["method"] == "gradient"


def test_collected_clips_come_apart_again():
    clips = list(explain_clips(video(3), Plain(), 1, all_clips=True))
    batch = explain_clips(video(3), Plain(), 1, all_clips=True).collected()
    assert len(batch) == 3
    for one, other in zip(batch, clips, strict=True):
        assert one.start == other.start
        assert one.frozen_share == other.frozen_share
        for name, array in other.explanation.arrays().items():
            assert np.array_equal(one.explanation.arrays()[name], array), name
    assert batch[-1].start == 8
    nothing = explain_clips(video(3), Plain(), 1, all_clips=True, when=Condition(0, 1.0))
    with pytest.raises(sr.InputError, match="no clip met the condition"):
        nothing.collected()


class Reel:
    """``count`` clips, made when they are asked for: what a decoder is to the loop."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self):
        from selrel_zennit.clips.cutting import CutClip

        for index in range(self.count):
            frames = video(1, seed=index)
            yield CutClip(4 * index, 4, frames, frames, 0.0)


def peak_of(work) -> int:
    work()  # what is loaded or kept once is there
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path):
    """A clip's maps and frames are 4 × 16 × 16 × (3 + 4 + 4 + 1) bytes here; its entry in the summary about 2 kB."""
    clip = 4 * 16 * 16 * 12

    def write(count: int):
        return lambda: write_outputs(
            tmp_path / str(count), explain_clips(Reel(count), Plain(), 0, all_clips=True), pictures=False
        )

    few, many = peak_of(write(10)), peak_of(write(110))
    assert many - few < 100 * clip / 3, (few, many)
    held = peak_of(lambda: explain_clips(Reel(110), Plain(), 0, all_clips=True).collected())
    # The same measure does see clips that are all held.
    assert held - few > 100 * clip
    with np.load(tmp_path / "110" / "explanation.npz") as arrays:
        assert arrays["relevance"].shape == (110, 4, 16, 16)
        assert np.array_equal(arrays["frames"][109], video(1, seed=109))


def test_a_progress_bar_is_shown_where_it_can_be_seen(monkeypatch, capsys):
    assert list(watched([1, 2], True)) == [1, 2]
    assert not capsys.readouterr().err
    assert list(watched([1, 2], lambda items: [one * 2 for one in items])) == [2, 4]
    with monkeypatch.context() as patch, contextlib.suppress(AttributeError):
        patch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        assert list(watched(range(3), True, "still clips")) == [0, 1, 2]
    assert "still clips" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        assert list(watched(range(3), False)) == [0, 1, 2]
    assert not capsys.readouterr().err
