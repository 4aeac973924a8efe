"""ClipSpec against its own words: sampling, padding, cropping, scaling, bounds."""

import json

import cv2
import numpy as np
import pytest
import torch

import selrel_zennit as sr


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (40, 24, 31, 3), dtype=np.uint8)


SMALL = {"frames": 4, "short_side": 12, "crop": 12}


def test_c3d_is_the_default():
    spec = sr.ClipSpec()
    assert spec.shape == (3, 16, 112, 112)
    low, high = spec.bounds()
    assert low.shape == high.shape == (1, 3, 1, 1, 1)
    assert low.ravel().tolist() == [-102, -98, -90]
    assert high.ravel().tolist() == [153, 157, 165]


@pytest.mark.parametrize(
    ("stride", "available", "start", "expected"),
    [
        (1, 10, 0, [0, 1, 2, 3]),
        (1, 10, 5, [5, 6, 7, 8]),
        (3, 10, 0, [0, 3, 6, 9]),
        (1, 3, 0, [0, 1, 2, 0]),
        (2, 3, 0, [0, 2, 1, 0]),
        (1, 10, 8, [8, 9, 8, 9]),
    ],
)
def test_sampling_and_loop_padding(stride, available, start, expected):
    spec = sr.ClipSpec(stride=stride, **SMALL)
    assert spec.indices(available, start).tolist() == expected
    assert spec.is_padded(available, start) == (available - start < (4 - 1) * stride + 1)


def test_clip_is_resized_cropped_and_scaled(frames):
    spec = sr.ClipSpec(**SMALL, value_range=(0, 1), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.5))
    clip = spec.clip(frames, start=3)
    assert clip.shape == (1, 3, 4, 12, 12)
    assert clip.dtype == torch.float32
    for step in range(4):
        resized = cv2.resize(frames[3 + step], (16, 12), interpolation=cv2.INTER_LINEAR)  # 31 × 12/24 = 15.5 → 16
        expected = (resized[:, 2:14] / 255.0 - [0.4, 0.5, 0.6]) / [0.2, 0.25, 0.5]
        assert np.allclose(clip[0, :, step].permute(1, 2, 0), expected, atol=1e-6)
    low, high = (torch.from_numpy(bound) for bound in spec.bounds())
    assert (clip >= low - 1e-6).all()
    assert (clip <= high + 1e-6).all()
    black_and_white = spec.from_pixels(
        np.stack([np.zeros((4, 12, 12, 3)), np.full((4, 12, 12, 3), 255)]).astype(np.uint8)
    )
    assert np.allclose(black_and_white[0], spec.bounds()[0][0])
    assert np.allclose(black_and_white[1], spec.bounds()[1][0])


def test_exact_size_and_bgr(frames):
    spec = sr.ClipSpec(frames=4, short_side=(12, 20), crop=10, channel_order="BGR", mean=(1, 2, 3))
    resized = cv2.resize(frames[0], (20, 12), interpolation=cv2.INTER_LINEAR)[1:11, 5:15]
    assert np.array_equal(
        spec.clip(frames)[0, :, 0].permute(1, 2, 0), resized[..., ::-1].astype(np.float32) - [1, 2, 3]
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"value_range": (0, 1), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}, {"channel_order": "BGR"}],
)
def test_pixels_survive_the_round_trip(frames, options):
    spec = sr.ClipSpec(**SMALL, **options)
    pixels = spec.pixels(frames)
    assert np.array_equal(spec.to_pixels(spec.from_pixels(pixels[None]))[0], pixels)
    assert np.array_equal(spec.to_pixels(spec.clip(frames))[0], pixels)


def test_starts():
    spec = sr.ClipSpec(**SMALL)
    assert spec.starts(3) == [0]
    assert spec.starts(4) == [0]
    assert spec.starts(13) == [0, 4, 8]


def test_a_small_frame_is_enlarged():
    assert sr.ClipSpec(**SMALL).clip(np.full((4, 1, 3, 3), 9, np.uint8)).shape == (1, 3, 4, 12, 12)


def test_dict_round_trip():
    spec = sr.ClipSpec(frames=4, short_side=(12, 20), crop=10, std=(1, 2, 3))
    assert sr.ClipSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(ValueError, match="not a field of ClipSpec: size"):
        sr.ClipSpec.from_dict({"size": 3})


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 1}, {"frames": 2.5}, {"stride": 0}, {"crop": 0}, {"crop": 113}, {"short_side": (111, 200)},
        {"short_side": (1, 2, 3)}, {"value_range": (1, 0)}, {"value_range": (0,)}, {"mean": (1, 2)},
        {"mean": (1, 2, float("nan"))}, {"std": (1, 0, 1)}, {"interpolation": "magic"}, {"channel_order": "GBR"},
    ],
)  # fmt: skip
def test_bad_fields(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        sr.ClipSpec(**wrong)


def test_bad_frames(frames):
    spec = sr.ClipSpec(**SMALL)
    for wrong in (frames[0], frames[..., :2], frames.astype(np.float32), [frames]):
        with pytest.raises(sr.InputError, match="uint8"):
            spec.clip(wrong)
    with pytest.raises(sr.InputError, match="start"):
        spec.clip(frames, start=40)
    with pytest.raises(sr.InputError, match="at least one frame"):
        spec.clip(frames[:0])
