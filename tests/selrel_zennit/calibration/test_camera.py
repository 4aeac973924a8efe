"""Still worlds through a camera: noise, codecs, and footage as it is."""

from __future__ import annotations

import numpy as np
import pytest

import selrel_zennit as sr
from networks import small_c3d
from selrel_zennit.calibration import Camera, still_footage, synthetic_stills
from selrel_zennit.cli import main
from selrel_zennit.clips.video import write_mp4

SMALL = ["--model", "networks:small_c3d", "--weights", "own"]


def smooth(size=(48, 62), seed=0):
    coarse = np.random.default_rng(seed).integers(40, 200, (size[0] // 8 + 1, size[1] // 8 + 1, 3))
    return coarse.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]].astype(np.uint8)


def test_without_noise_and_codec_it_is_one_frame_repeated():
    frame = smooth()
    clip = Camera().film(frame, 5)
    assert Camera().exact
    assert clip.shape == (5, *frame.shape)
    assert (clip == frame).all()


def test_noise_has_the_deviation_asked_for_in_every_frame():
    clip = Camera(noise=3).film(np.full((60, 60, 3), 128, np.uint8), 6, seed=1).astype(float) - 128
    assert clip.std() == pytest.approx(np.sqrt(9 + 1 / 12), rel=0.02)  # rounding adds a twelfth
    assert np.corrcoef(clip[0].ravel(), clip[1].ravel())[0, 1] == pytest.approx(0, abs=0.05)
    again = Camera(noise=3).film(np.full((60, 60, 3), 128, np.uint8), 6, seed=1)
    assert np.array_equal(again - 128.0, clip)


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
@pytest.mark.parametrize("size", [(48, 62), (49, 63)])
def test_a_codec_keeps_size_order_of_channels_and_looks(codec, size):
    frame = smooth(size)
    clip = Camera(codec=codec).film(frame, 7).astype(float)
    assert clip.shape == (7, *frame.shape)
    assert np.abs(clip - frame).mean() < 12
    # Another order of the channels is much further off.
    assert np.abs(clip - frame).mean() < np.abs(clip - frame[..., ::-1]).mean() / 2
    moving = Camera(noise=4, codec=codec).film(frame, 7)
    assert np.ptp(moving.astype(float), axis=0).mean() > (0.5 if codec == "jpeg" else 0)  # H.264 skips most of it


@pytest.mark.parametrize(
    ("settings", "says"), [({"noise": -1}, "grey levels"), ({"noise": "2"}, "grey levels"), ({"codec": "h266"}, "jpeg")]
)
def test_what_is_no_camera(settings, says):
    with pytest.raises(sr.InputError, match=says):
        Camera(**settings)


def test_stills_are_filmed_by_their_camera_each_with_its_own_noise():
    spec = small_c3d().spec
    stills = synthetic_stills(spec, 2, 2, camera=Camera(noise=2))
    exact = synthetic_stills(spec, 2, 2)
    assert stills.source == "synthetic clips with noise of 2 grey levels"
    noise = [
        stills.clip(part, index, 4).astype(float) - other.clip(part_of_other, index, 4)
        for stills, other in [(stills, exact)]
        for part, part_of_other in ((stills.fit, exact.fit), (stills.held_out, exact.held_out))
        for index in (0, 1)
    ]
    assert all(1 < one.std() < 3 for one in noise)
    assert len({one.tobytes() for one in noise}) == 4


def test_footage_is_cut_into_clips_that_share_no_frame_between_both_purposes(tmp_path):
    spec = small_c3d().spec  # 16 frames
    counted = np.repeat(np.arange(70, dtype=np.uint8)[:, None, None, None] * 3, 32, 1).repeat(32, 2).repeat(3, 3)
    write_mp4(tmp_path / "a.mp4", counted, 25)
    stills = still_footage(spec, [tmp_path / "a.mp4"], clips=6, held_out=3)
    assert (len(stills.fit), len(stills.held_out)) == (6, 3)
    numbers = [
        {round(float(frame.mean()) / 3) for clip in part for frame in clip} for part in (stills.fit, stills.held_out)
    ]
    assert stills.fit[0].shape == (16, 16, 16, 3)
    assert max(numbers[0]) < min(numbers[1])
    assert min(numbers[0]) == 0
    assert max(numbers[1]) >= 68
    assert stills.clip(stills.fit, 1, 16) is stills.fit[1]
    write_mp4(tmp_path / "short.mp4", counted[:31], 25)
    with pytest.raises(sr.InputError, match="two clips' worth, 32"):
        still_footage(spec, [tmp_path / "short.mp4"], 4, 4)


def test_calibrate_on_still_footage_from_the_command_line(tmp_path, capsys):
    rng = np.random.default_rng(0)
    frames = np.clip(smooth((32, 40)) + rng.normal(0, 3, (120, 32, 40, 3)), 0, 255).astype(np.uint8)
    write_mp4(tmp_path / "still.mp4", frames, 25)
    made = ["calibrate", *SMALL, "--method", "gradient", "--alpha", "0.05", "-o", str(tmp_path / "a.json")]
    code = main([*made, "--still", str(tmp_path / "still.mp4"), "--n-clips", "20", "--held-out", "20"])
    printed = capsys.readouterr().out
    assert code in (0, 1)  # one scene: whether the rate holds is up to it
    assert "1 video of a scene that stands still" in printed
    assert "classes drawn at random" in printed
    assert "regions at q = 0.1" in printed
    assert sr.Calibration.read(tmp_path / "a.json").clips == 20
    assert main([*made, "--still", "x.mp4", "--noise", "2"]) == 2
    assert "takes footage as it is" in capsys.readouterr().err
