"""Synthetic clips: the truth that comes with them must be true, and a single frame must say nothing about the class."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy import stats

from selrel_zennit.errors import InputError
from selrel_zennit.synthetic import (
    CLASSES,
    GENERATOR_VERSION,
    SCENES,
    SyntheticClip,
    SyntheticSpec,
    dataset,
    demo_clip,
    demo_frames,
    frozen,
    make_clip,
)
from selrel_zennit.synthetic.motion import erratic, opposite, steady

SPEC = SyntheticSpec()
MOVING_CAMERA = SyntheticSpec(shake=2, pan=2)
# Labels and scenes do not depend on the size of the frames, so their frequencies are counted on small ones.
SMALL = SyntheticSpec(frames=2, height=32, width=32)


@pytest.fixture(autouse=True)
def _one_opencv_thread() -> Iterator[None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


def same(first: SyntheticClip, second: SyntheticClip) -> bool:
    return np.array_equal(first.frames, second.frames) and np.array_equal(first.flow, second.flow)


def test_a_clip_depends_on_spec_seed_and_index_alone() -> None:
    clips = list(dataset(MOVING_CAMERA, 3, 4, start=9))
    again = make_clip(MOVING_CAMERA, 3, 11)
    assert same(clips[2], again)
    assert (again.seed, again.index, again.spec) == (3, 11, MOVING_CAMERA)
    assert not np.array_equal(clips[1].frames, again.frames)
    assert not np.array_equal(make_clip(MOVING_CAMERA, 4, 11).frames, again.frames)


def test_types_and_shapes() -> None:
    clip = make_clip(SyntheticSpec(frames=5, height=48, width=64, shake=1), 0, 0)
    assert clip.frames.shape == (5, 48, 64, 3)
    assert clip.frames.dtype == np.uint8
    for mask in (clip.causal_mask, clip.distractor_mask, clip.scene_mask):
        assert mask.shape == (5, 48, 64)
        assert mask.dtype == np.bool_
    assert clip.flow.shape == (4, 48, 64, 2)
    assert clip.flow.dtype == np.float32
    assert clip.class_name == CLASSES[clip.class_index]
    assert clip.scene_name == SCENES[clip.scene_index]


def test_version_1_is_pinned() -> None:
    """A change here needs a new GENERATOR_VERSION. Frames may differ by a grey level with OpenCV's rounding."""
    clip = make_clip(SyntheticSpec(bias=0.5, shake=1), 7, 21)
    assert GENERATOR_VERSION == 1
    assert (clip.class_name, clip.scene_name) == ("down", "fence")
    states = [0.694878962418, 1.088317885152, 0.168931142273, 0.338993847874]
    np.testing.assert_allclose(clip.causal_states[-1], states, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(clip.camera[:4], [[-1, -1], [0, -1], [-1, -1], [-1, 0]])
    assert clip.frames.mean() == pytest.approx(153.56, abs=0.2)


def test_every_eight_clips_hold_every_class_once() -> None:
    labels = [clip.class_index for clip in dataset(SMALL, 5, 80)]
    blocks = np.reshape(labels, (10, 8))
    assert (np.sort(blocks, axis=1) == np.arange(8)).all()
    assert len({tuple(block) for block in blocks.tolist()}) > 1


def test_classes_differ_in_the_causal_motion_alone() -> None:
    clips = [make_clip(MOVING_CAMERA, 2, 6, class_index=label) for label in range(len(CLASSES))]
    for clip in clips[1:]:
        np.testing.assert_array_equal(clip.frames[0], clips[0].frames[0])
        np.testing.assert_array_equal(clip.distractor_states, clips[0].distractor_states)
        np.testing.assert_array_equal(clip.camera, clips[0].camera)
        assert clip.scene_index == clips[0].scene_index
        changed = (clip.frames != clips[0].frames).any(axis=-1)
        sprites = grown(clip.causal_mask | clips[0].causal_mask, 2)
        assert changed[1:].any()
        assert not (changed & ~sprites).any()


def grown(masks: np.ndarray, pixels: int = 1) -> np.ndarray:
    """Masks [T,H,W] spread by some pixels, across the frame's edges too."""
    padded = np.pad(masks, ((0, 0), (pixels,) * 2, (pixels,) * 2), mode="wrap").astype(np.uint8)
    kernel = np.ones((2 * pixels + 1,) * 2, np.uint8)
    spread = np.stack([cv2.dilate(mask, kernel) for mask in padded])
    return spread[:, pixels:-pixels, pixels:-pixels] > 0


def test_masks_share_out_every_pixel_and_the_distractor_is_where_it_changes_the_frames() -> None:
    for index in range(6):
        clip, alone = (make_clip(replace(MOVING_CAMERA, distractor=on), 1, index) for on in (True, False))
        total = clip.causal_mask.astype(int) + clip.distractor_mask + clip.scene_mask
        assert (total == 1).all()
        np.testing.assert_array_equal(clip.causal_mask, alone.causal_mask)
        assert not alone.distractor_mask.any()
        changed = (clip.frames != alone.frames).any(axis=-1)
        # Pixels at a sprite's edge are mixed: those of the causal sprite show a little of what it hides.
        edge = grown(clip.causal_mask) & grown(~clip.causal_mask)
        assert not (changed & ~edge & ~grown(clip.distractor_mask, 2)).any()
        assert changed[clip.distractor_mask].mean() > 0.98


def sampled(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A frame's values at points [N,2], x then y, between pixels and across its edges, float64."""
    height, width = frame.shape[:2]
    corner = np.floor(points).astype(int)
    part = (points - corner)[:, :, None]
    x0, y0, x1, y1 = (
        corner[:, 0] % width,
        corner[:, 1] % height,
        (corner[:, 0] + 1) % width,
        (corner[:, 1] + 1) % height,
    )
    values = frame.astype(float)
    top = values[y0, x0] * (1 - part[:, 0]) + values[y0, x1] * part[:, 0]
    bottom = values[y1, x0] * (1 - part[:, 0]) + values[y1, x1] * part[:, 0]
    return top * (1 - part[:, 1]) + bottom * part[:, 1]


def warp_errors(clip: SyntheticClip, layer: str) -> tuple[float, float]:
    """Mean difference in grey levels of what is seen at t and where the flow (or no motion) takes it at t + 1."""
    masks, states = getattr(clip, f"{layer}_mask"), getattr(clip, f"{layer}_states")
    inside = ~grown(~masks, 2)
    followed, stayed = [], []
    for t in range(len(masks) - 1):
        if np.floor(states[t, 3]) != np.floor(states[t + 1, 3]):
            continue  # the size starts again: too few pixels are left of the picture
        y, x = np.nonzero(inside[t])
        here = np.stack([x, y], axis=1).astype(float)
        there = here + clip.flow[t][y, x]
        near = np.rint(there).astype(int)
        kept = inside[t + 1][near[:, 1] % masks.shape[1], near[:, 0] % masks.shape[2]]
        before = clip.frames[t][y, x].astype(float)
        followed.append(np.abs(sampled(clip.frames[t + 1], there) - before)[kept].ravel())
        stayed.append(np.abs(clip.frames[t + 1][y, x].astype(float) - before)[kept].ravel())
    return float(np.concatenate(followed).mean()), float(np.concatenate(stayed).mean())


@pytest.mark.parametrize("label", range(len(CLASSES)), ids=CLASSES)
@pytest.mark.parametrize("layer", ["causal", "distractor"])
def test_flow_takes_each_sprite_to_the_next_frame(label: int, layer: str) -> None:
    errors = [warp_errors(make_clip(MOVING_CAMERA, 4, index, class_index=label), layer) for index in range(3)]
    followed, stayed = np.mean(errors, axis=0)
    assert followed < 3.0
    assert followed < 0.3 * stayed


def test_flow_of_the_scene_is_the_camera_and_exact() -> None:
    still = make_clip(SPEC, 4, 0)
    assert not still.camera.any()
    assert not still.flow[still.scene_mask[:-1]].any()
    moving = make_clip(MOVING_CAMERA, 4, 0)
    assert moving.camera.any()
    scene = ~grown(~moving.scene_mask, 2)
    for t in range(MOVING_CAMERA.frames - 1):
        y, x = np.nonzero(scene[t])
        step = moving.flow[t][y, x]
        assert (step == step[0]).all()
        y1, x1 = (y + step[:, 1].astype(int)) % 112, (x + step[:, 0].astype(int)) % 112
        kept = scene[t + 1][y1, x1]
        np.testing.assert_array_equal(moving.frames[t + 1][y1, x1][kept], moving.frames[t][y, x][kept])


def causal_motion(clip: SyntheticClip) -> np.ndarray:
    """Mean shift x and y, mean turn and mean stretch of the causal sprite, from the flow, away from size restarts."""
    found = []
    for t in range(len(clip.flow)):
        if np.floor(clip.causal_states[t, 3]) != np.floor(clip.causal_states[t + 1, 3]):
            continue
        y, x = np.nonzero(clip.causal_mask[t])
        centre = (clip.causal_states[t, :2] - 0.5) * 112  # wrap to the copy of the sprite around its centre
        x, y = (x - centre[0]) % 112 - 56, (y - centre[1]) % 112 - 56
        flow = clip.flow[t][clip.causal_mask[t]]
        design = np.stack([np.ones_like(x), x, y], axis=1)
        (u0, v0), (ux, vx), (uy, vy) = np.linalg.lstsq(design, flow, rcond=None)[0]
        along, across = 2 + ux + vy, vx - uy  # a point goes to stretch · rotation · itself
        found.append((u0, v0, np.arctan2(across, along), np.hypot(across, along) / 2 - 1))
    return np.mean(found, axis=0)


@pytest.mark.parametrize("label", range(len(CLASSES)), ids=CLASSES)
def test_motion_is_the_class_and_backwards_its_opposite(label: int) -> None:
    clip = make_clip(SPEC, 8, label, class_index=label)
    backwards = replace(clip, frames=clip.frames[::-1], causal_states=clip.causal_states[::-1], distractor_states=None)
    sign = {"left": -1, "up": -1, "counter-clockwise": -1, "shrinking": -1}
    for seen, kind in ((clip, label), (backwards, opposite(label))):
        motion = causal_motion(seen)
        moved = kind // 2
        assert np.sign(motion[moved]) == sign.get(CLASSES[kind], 1)
        least = (2.0, 2.0, 0.1, 0.04)
        assert abs(motion[moved]) > least[moved]
        still = np.delete(np.abs(motion) / least, moved)
        assert (still < 0.1).all()
    assert warp_errors(backwards, "causal")[0] < 3.0


def test_a_state_is_uniform_at_every_frame_of_every_class() -> None:
    """The construction's claim, tested: each coordinate, and all four together against the class."""
    count, frames = 1500, 16
    drawn = np.array(
        [
            [steady(np.random.default_rng((label, number)), frames, label) for number in range(count)]
            for label in range(len(CLASSES))
        ]
    )
    wandering = np.array([[erratic(np.random.default_rng((9, number)), frames) for number in range(count)]])
    states = np.concatenate([drawn, wandering]) % 1.0
    for t in (0, 1, 8, 15):
        p_values = [stats.kstest(states[group, :, t, k], "uniform").pvalue for group in range(9) for k in range(4)]
        assert min(p_values) > 0.001 / len(p_values)
        cells = (states[:, :, t] * 3).astype(int) @ np.array([1, 3, 9, 27])
        table = np.stack([np.bincount(row, minlength=81) for row in cells])
        assert stats.chi2_contingency(table).pvalue > 0.001


def test_speed_does_not_give_the_class_away() -> None:
    """Speeds are drawn from one stream whatever the class; two classes of one clip share start and speeds."""
    first, second = (steady(np.random.default_rng(0), 16, label) for label in (0, 1))
    np.testing.assert_allclose(first - first[0], -(second - second[0]), atol=1e-12)


@pytest.mark.parametrize("bias", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_bias_dial(bias: float) -> None:
    count = 640
    clips = list(dataset(replace(SMALL, bias=bias), 6, count))
    own = np.mean([clip.class_index == clip.scene_index for clip in clips])
    expected = bias + (1 - bias) / len(SCENES)
    assert abs(own - expected) <= 3 * np.sqrt(expected * (1 - expected) / count)


def test_opposed_scenes_are_always_another_class_and_any_other() -> None:
    pairs = {(clip.class_index, clip.scene_index) for clip in dataset(replace(SMALL, opposed=True), 6, 560)}
    assert pairs == {(label, scene) for label in range(8) for scene in range(8) if label != scene}


def test_bias_changes_the_scene_alone() -> None:
    free, tied = (make_clip(replace(SPEC, bias=bias), 6, 1) for bias in (0.0, 1.0))
    assert tied.scene_index == tied.class_index == free.class_index
    np.testing.assert_array_equal(free.causal_states, tied.causal_states)
    np.testing.assert_array_equal(free.causal_mask, tied.causal_mask)


def test_frozen_repeats_one_frame() -> None:
    frames = make_clip(SPEC, 0, 0).frames
    still = frozen(frames, 3)
    assert still.shape == frames.shape
    assert (still == frames[3]).all()
    with pytest.raises(InputError, match="at must lie in 0…15"):
        frozen(frames, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 1}, "frames must be a whole number of at least 2, got 1"),
        ({"height": 8}, "height must be"),
        ({"shake": 0.5}, "shake must be"),
        ({"bias": 1.5}, "bias must lie in 0…1"),
        ({"bias": 0.5, "opposed": True}, "opposed scenes leave no bias"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SyntheticSpec(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{"seed": -1}, {"index": -1}, {"class_index": 8}, {"scene_index": -1}])
def test_clips_that_there_are_not(arguments: dict[str, int]) -> None:
    with pytest.raises(InputError, match="must"):
        make_clip(SPEC, **{"seed": 0, "index": 0, **arguments})  # type: ignore[arg-type]


def test_the_embedded_clip() -> None:
    clip = demo_clip()
    np.testing.assert_array_equal(demo_frames(), clip.frames)
    assert clip.frames.shape == (16, 112, 112, 3)
    assert clip.class_name == "right"
    assert clip.scene_index != clip.class_index
    assert clip.causal_mask.mean(axis=(1, 2)).min() > 0.05
    assert clip.distractor_mask.mean(axis=(1, 2)).min() > 0.05


def test_throughput(capsys: pytest.CaptureFixture[str]) -> None:
    make_clip(SPEC, 0, 0)
    began = time.process_time()
    for _ in dataset(MOVING_CAMERA, 1, 50):
        pass
    rate = 50 / (time.process_time() - began)
    with capsys.disabled():
        print(f"\n{rate:.0f} clips of 16×112×112 per second of processor time")
    assert rate > 20
