"""The gauge: 0 where nothing moves, in spite of noise; what it shows where something does, worked out by hand."""

import math

import numpy as np
import pytest

from selrel_deploy.live.gauge import Gauge, motion_of_margin, noise_of, still_clip
from selrel_zennit.calibration.camera import Camera
from selrel_zennit.explanation import Explanation

from .stand_ins import Brightness, moving

SHAPE = (1, 8, 16, 16)


def explanation(relevance, logits=(3.0, 1.0, 0.0), target=0):
    relevance = np.asarray(relevance, np.float32)
    mask = np.zeros(relevance.shape, bool)
    return Explanation(np.array([logits], np.float32), np.array([target]), relevance, np.zeros_like(relevance), mask)


@pytest.mark.parametrize("sigma", [0.0, 1.0, 3.0, 12.0])
def test_noise_is_estimated_from_what_a_still_camera_shows(sigma):
    world = np.random.default_rng(1).integers(80, 170, (64, 64, 3), np.uint8)
    assert noise_of(Camera(noise=sigma).film(world, 8)) == pytest.approx(sigma, abs=0.15 * sigma + 0.05)


def test_noise_is_estimated_beside_what_moves():
    frames = np.stack([Camera(noise=3.0).film(frame, 1, seed)[0] for seed, frame in enumerate(moving())])
    assert noise_of(frames) == pytest.approx(3.0, rel=0.35)


def test_a_still_clip_is_the_middle_frame_with_the_noise_of_the_window():
    assert (still_clip(moving(), 0) == moving()[4]).all()
    noisy = np.clip(moving() + np.random.default_rng(0).normal(0, 4, moving().shape), 0, 255).astype(np.uint8)
    still = still_clip(noisy, 0)
    assert np.abs(still.astype(int) - noisy[4]).mean() < 8
    assert not (still == still_clip(noisy, 1)).all()


def test_the_gauge_reads_nothing_before_there_are_still_clips():
    reading = Gauge(motion=False).read(explanation(np.ones(SHAPE)))
    assert all(map(math.isnan, reading))


@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_a_still_camera_reads_about_nothing_and_a_moving_square_well_above(sigma):
    engine, gauge = Brightness(), Gauge(motion=False)
    rng = np.random.default_rng(0)

    def film(frames):
        return np.clip(np.rint(frames + rng.normal(0, sigma, frames.shape)), 0, 255).astype(np.uint8)

    for seed in range(20):
        gauge.learn(engine.look(still_clip(film(moving()), seed), 0, None).explanation)
    assert gauge.ready
    frozen = np.repeat(moving()[4:5], 8, axis=0)
    still = [gauge.read(engine.look(film(frozen), 0, None).explanation).value for _ in range(20)]
    assert np.mean(np.array(still) > 0) <= 0.25
    assert np.mean(still) < 0.01
    # By hand, of the square that moves by a column a frame: four columns of five rows change over two frames, two at
    # either end; half of them are 250 bright, half 60.
    changed = 5 * (6 * (2 * 250 + 2 * 60) + 2 * (250 + 60))
    share = changed / moving()[..., 0].sum()
    found = gauge.read(engine.look(film(moving()), 0, None).explanation).value
    assert found == pytest.approx(share, rel=0.1 if sigma else 1e-6)
    assert gauge.stills >= 2
    assert 0 <= gauge.error_rate <= 0.5


def test_motion_of_a_margin_by_hand():
    """Logits 3, 1, 0: the margin of the first is 3 − ½. The map sums to what of it is motion."""
    relevance = np.zeros(SHAPE)
    relevance[0, 2, 3, 4], relevance[0, 5, 1, 1] = 2.0, -0.75
    assert motion_of_margin(explanation(relevance)) == pytest.approx(1.25 / 2.5)
    assert motion_of_margin(explanation(-relevance)) == 0
    assert motion_of_margin(explanation(relevance, target=2)) == 0


def test_the_null_is_taken_off_and_the_rest_stretched():
    gauge = Gauge(motion=True)
    for _ in range(10):
        relevance = np.zeros(SHAPE)
        relevance[0, 0, 0, 0] = 0.5  # a fifth of the margin
        gauge.learn(explanation(relevance))
    relevance[0, 0, 0, 0] = 1.5  # three fifths: half of what lies above the null
    reading = gauge.read(explanation(relevance))
    assert reading.null == pytest.approx(0.2)
    assert reading.raw == pytest.approx(0.6)
    assert reading.value == pytest.approx(0.5)
    assert gauge.error_rate == 0


def test_still_clips_that_read_above_are_counted():
    gauge = Gauge(motion=True)
    for share in [0.5] * 8 + [2.0, 0.5]:
        relevance = np.zeros(SHAPE)
        relevance[0, 0, 0, 0] = share
        gauge.learn(explanation(relevance))
    assert (gauge.stills, gauge.error_rate) == (2, 0.5)
