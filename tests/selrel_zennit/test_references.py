"""References: which frames, what stands still, and how a camera moved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import selrel_zennit as sr
from selrel_zennit.camera_motion import camera_path, doubtful_steps, following
from selrel_zennit.pipeline import explain_video
from selrel_zennit.references import REFERENCES, evenly_spaced, make_reference
from selrel_zennit.synthetic import SyntheticSpec, make_clip
from small_video_network import small


def grey(clip):
    mean = clip.frames.astype(np.float64).mean(-1)
    return np.rint(mean).astype(np.uint8)


def test_frames_are_evenly_spaced():
    assert evenly_spaced(16, 4) == [2, 6, 10, 14]
    assert evenly_spaced(16, 1) == [8]
    assert evenly_spaced(3, 5) == [0, 1, 2]
    assert evenly_spaced(1, 4) == [0]


@pytest.mark.parametrize("kind", REFERENCES)
def test_a_still_clip_is_its_own_reference_to_the_last_bit(kind):
    frame = torch.randn(2, 3, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    clip = frame.expand(2, 3, 9, 40, 40)
    for reference in make_reference(kind)(clip):
        assert torch.equal(reference, clip)


def test_the_median_is_that_of_each_pixel_and_one_of_its_values():
    clip = torch.randn(1, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    (reference,) = make_reference("median")(clip)
    assert torch.equal(reference, clip.median(2, keepdim=True).values.expand_as(clip))


@pytest.mark.parametrize("motion", [{"pan": 3}, {"shake": 3}, {"pan": 2, "shake": 2}, {}])
def test_the_camera_is_met_to_a_pixel_where_it_is_known(motion):
    for index in range(4):
        clip = make_clip(SyntheticSpec(**motion), 7, index)
        path = camera_path(grey(clip))
        found = -path[:, :2, 2]
        np.testing.assert_allclose(found, clip.camera - clip.camera[0], atol=1)


@pytest.mark.parametrize("index", [3, 6, 29])
def test_steps_of_up_to_eleven_pixels_are_met(index):
    clip = make_clip(SyntheticSpec(pan=4, shake=4), 11, index)
    assert np.abs(np.diff(clip.camera, axis=0)).max() in (9, 11)
    np.testing.assert_allclose(-camera_path(grey(clip))[:, :2, 2], clip.camera - clip.camera[0], atol=1)


@pytest.mark.parametrize("kind", ["frames", "middle", "median"])
@pytest.mark.parametrize("steps", [1, 7, 16])
def test_a_traced_reference_is_that_of_other_clips_too(kind, steps):
    first, other = torch.randn(2, 2, 3, steps, 4, 4, generator=torch.Generator().manual_seed(0))
    reference = make_reference(kind)
    assert torch.equal(make_fx(reference)(first)(other), reference(other))


def test_a_camera_is_not_traced():
    with pytest.raises(sr.InputError, match="static graph"):
        make_fx(make_reference("camera"))(torch.zeros(1, 3, 4, 40, 40))


def test_a_turning_camera_is_followed():
    """Rotation about the centre by 3 degrees a frame: a homography, not a shift."""
    import cv2

    world = np.random.default_rng(0).integers(0, 255, (30, 30), np.uint8).repeat(8, 0).repeat(8, 1)
    world = cv2.GaussianBlur(world, (0, 0), 1.5)
    turns = [cv2.getRotationMatrix2D((119.5, 119.5), 3 * step, 1) for step in range(4)]
    frames = np.stack([cv2.warpAffine(world, turn, (240, 240))[56:184, 56:184] for turn in turns])
    path = camera_path(frames)
    corner = path[3] @ np.array([20.0, 20.0, 1.0])
    shift = np.array([[1, 0, 56], [0, 1, 56], [0, 0, 1.0]])
    expected = np.linalg.inv(shift) @ np.vstack([turns[3], [0, 0, 1]]) @ shift @ np.array([20.0, 20.0, 1.0])
    assert np.linalg.norm(corner[:2] / corner[2] - expected[:2] / expected[2]) < 1.5


def test_a_panning_camera_over_a_still_world_has_no_motion_but_at_the_rim():
    spec = SyntheticSpec(pan=3, distractor=False)
    made = make_clip(spec, 7, 3)
    clip = sr.load_model("demo").spec.clip(made.frames)
    plain = (make_reference("middle")(clip)[0] - clip).abs().mean(1)[0]
    followed = (following(clip, 8) - clip).abs().mean(1)[0]
    inside = torch.from_numpy(made.scene_mask).clone()
    inside[:, :30], inside[:, -30:], inside[:, :, :30], inside[:, :, -30:] = (False,) * 4
    away = torch.from_numpy(~(made.causal_mask[8])[None].repeat(16, 0))
    assert plain[inside & away].mean() > 5
    assert followed[inside & away].mean() < plain[inside & away].mean() / 10


def test_what_is_no_reference():
    with pytest.raises(sr.InputError, match="frames, middle, median, camera"):
        make_reference("last")
    with pytest.raises(sr.InputError, match="1 or more"):
        make_reference("frames", 0)


def clip_of(model, **motion):
    return model.spec.clip(make_clip(SyntheticSpec(**motion), 7, 1).frames)


def test_a_camera_that_is_not_met_is_doubtful():
    model = sr.load_model("demo")
    assert doubtful_steps(clip_of(model, pan=3, shake=2)) == 0
    assert doubtful_steps(clip_of(model, pan=25)) == 15


def test_a_doubtful_camera_is_said():
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    model = sr.load_model(small, "random")
    found = explain_video(model, frames, "gradient", motion="camera", frozen=False)
    assert any("the camera's motion is doubtful at 7 of 7 steps" in note for note in found.notes)
    still = explain_video(model, np.repeat(frames[:1], 8, axis=0), "gradient", motion="camera", frozen=False)
    assert not any("doubtful" in note for note in still.notes)
