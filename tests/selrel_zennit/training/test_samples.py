"""What is shown: the network's own clip where nothing is drawn, the same draws for a seed, and no bad video."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from selrel_zennit import ClipSpec, InputError, read_frames
from selrel_zennit.evaluate.dataset import read_dataset
from selrel_zennit.training import RECIPES
from selrel_zennit.training.samples import Samples, cut, measured
from training_videos import SPEC, video

PAPER, SMALL = RECIPES["paper"], RECIPES["small"]


def shown(samples, seed=1, epoch=2):
    return list(samples.batches(seed, epoch))


def test_held_out_clips_are_those_that_are_explained(data):
    held = Samples(data.part("test"), SPEC, None)
    (pixels, labels), *more = list(held.middles())
    assert not more
    for item, clip, label in zip(data.part("test"), pixels, labels, strict=True):
        # 22 frames, a span of 15: the middle clip begins at frame 3.
        assert (SPEC.from_pixels(clip[None]) == SPEC.array(read_frames(item.path), start=3)).all()
        assert data.classes[label] == item.label


def test_the_paper_shows_the_centre_crop_of_a_clip_of_the_video(data):
    sized = ClipSpec(frames=8, stride=2, short_side=36, crop=32)
    frames = video((2, 0), 7)
    clip = cut(np.stack([sized.resize(frame) for frame in frames]), sized, PAPER, np.random.default_rng(0))
    assert any((clip == sized.pixels(frames, start)).all() for start in range(8))


def test_the_paper_pads_a_short_video_by_a_loop():
    frames = video((0, 2), 3, count=5)[:, :32, :32]
    clip = cut(frames, SPEC, PAPER, np.random.default_rng(0))
    assert (clip == frames[[0, 2, 4, 1, 3, 0, 2, 4]]).all()


def test_a_closer_square_lies_about_the_centre():
    """The frames hold their own coordinates, so a clip says where it was cut out of."""
    rows, columns = np.meshgrid(np.arange(40), np.arange(200), indexing="ij")
    frames = np.repeat(np.stack([rows, columns, rows], -1)[None].astype(np.uint8), 20, 0)
    sides, mirrored = set(), 0
    for seed in range(200):
        clip = cut(frames, SPEC, replace(SMALL, brightness=0.0), np.random.default_rng(seed)).astype(float)
        height, width = np.ptp(clip[..., 0]), np.ptp(clip[..., 1])
        assert height == pytest.approx(width, abs=2)
        # Up to (40 - 32) / 2 off the centre, in width as in height.
        assert 15 <= clip[..., 0].mean() <= 24
        assert 95 <= clip[..., 1].mean() <= 104
        sides.add(round(height))
        mirrored += clip[0, 0, 0, 1] > clip[0, 0, -1, 1]
    assert len(sides) > 7
    assert 70 < mirrored < 130


def test_a_seed_and_an_epoch_decide_what_is_shown(data):
    learning = data.part("train")
    first, again = shown(Samples(learning, SPEC, SMALL)), shown(Samples(learning, SPEC, SMALL, most_kept=0))
    assert len(first) == 1
    assert (first[0][0] == again[0][0]).all()
    assert (first[0][1] == again[0][1]).all()
    other = shown(Samples(learning, SPEC, SMALL), epoch=3)
    assert (first[0][0] != other[0][0]).any()


def test_labels_go_with_their_clips(data, quick):
    samples = Samples(data.part("train"), SPEC, quick)
    found = np.concatenate([labels for _, labels in shown(samples)])
    order = np.concatenate(samples.order(1, 2))
    assert sorted(order) == list(range(12))
    assert (found == samples.labels[order]).all()


def test_moments_are_those_of_the_middle_frames(data):
    samples = Samples(data.part("train"), SPEC, PAPER)
    middles = np.stack([SPEC.resize(read_frames(item.path)[11]) for item in data.part("train")]).astype(float)
    mean, std = samples.moments()
    assert mean == pytest.approx(middles.mean((0, 1, 2)), abs=0.01)
    assert std == pytest.approx(middles.std((0, 1, 2)), abs=0.01)


def test_means_stand_in_the_order_and_unit_of_the_network(data):
    mean, std = Samples(data.part("train"), SPEC, PAPER).moments()
    for standardise in (False, True):
        spec = ClipSpec(8, 2, 32, 32, (-1.0, 1.0), channel_order="BGR", std=(2, 2, 2))
        found = measured(spec, Samples(data.part("train"), spec, PAPER), standardise)
        assert found.mean == pytest.approx([value / 127.5 - 1 for value in mean[::-1]])
        assert found.std == pytest.approx([value / 127.5 for value in std[::-1]] if standardise else (2, 2, 2))


@pytest.mark.parametrize("most_kept", [2**30, 0])
def test_bad_videos_are_left_out_and_named(videos, tmp_path, most_kept):
    root = shutil.copytree(videos, tmp_path / "copy")
    (root / "train/down/0.mp4").write_bytes(b"no video")
    (root / "train/right/1.mp4").write_bytes((root / "train/right/1.mp4").read_bytes()[:300])
    samples = Samples(read_dataset(root).part("train"), SPEC, SMALL, most_kept)
    assert [entry.name for entry in samples.skipped] == ["train/down/0.mp4", "train/right/1.mp4"]
    assert all(entry.why for entry in samples.skipped)
    assert len(samples) == 10
    assert sum(len(labels) for _, labels in shown(samples)) == 10


def test_a_video_that_goes_bad_on_the_way_is_left_out(videos, tmp_path):
    root = shutil.copytree(videos, tmp_path / "copy")
    samples = Samples(read_dataset(root).part("train"), SPEC, SMALL, most_kept=0)
    (root / "train/still/2.mp4").unlink()
    assert len(samples) == 12
    for epoch in (0, 1):
        assert sum(len(labels) for _, labels in shown(samples, epoch=epoch)) == 11
    assert [entry.name for entry in samples.skipped] == ["train/still/2.mp4"]


def test_no_readable_video_is_an_error(videos, tmp_path):
    root = shutil.copytree(videos, tmp_path / "copy")
    for path in root.rglob("*.mp4"):
        path.write_bytes(b"no video")
    with pytest.raises(InputError, match=r"none of 12 videos can be read; the first: .*is not a video"):
        Samples(read_dataset(root).part("train"), SPEC, SMALL)
