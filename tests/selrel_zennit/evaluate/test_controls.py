"""Controls: what is taken away is gone, what is kept is there."""

import numpy as np
import pytest

import selrel_zennit as sr
from selrel_zennit.evaluate import evaluate
from selrel_zennit.evaluate.controls import controlled, foreground
from selrel_zennit.synthetic import SyntheticSpec, make_clip
from small_video_network import SOURCE, small
from videos import moving_square


def textured(count=8, side=64, step=3):
    """A textured square that moves to the right over a textured ground that stands."""
    random = np.random.default_rng(0)
    ground, square = (
        random.integers(0, 120, (side, side, 3), np.uint8),
        random.integers(130, 255, (20, 20, 3), np.uint8),
    )
    frames = np.repeat(ground[None], count, axis=0)
    for t, frame in enumerate(frames):
        frame[20:40, 5 + step * t : 25 + step * t] = square
    return frames


def test_appearance_free_frames_are_noise_that_moves_as_the_video_does():
    frames = textured()
    made = controlled(frames, "appearance-free", seed=3)
    assert (made == controlled(frames, "appearance-free", seed=3)).all()
    assert (made[1:] != controlled(frames, "appearance-free", seed=4)[1:]).any()
    for frame, shown in zip(frames, made, strict=True):
        assert abs(np.corrcoef(frame.ravel(), shown.ravel())[0, 1]) < 0.05
        assert abs(shown.mean() - 127.5) < 5
    # The square's noise goes along with it; what stands, stands.
    inside = []
    for t in range(7):
        here, next_one = (made[at, 22:38, 8 + 3 * at : 22 + 3 * at] for at in (t, t + 1))
        inside.append((here == next_one).mean())
    assert np.mean(inside) > 0.6
    assert (made[0, 50:] == made[-1, 50:]).mean() > 0.9
    still = np.repeat(frames[:1], 4, axis=0)
    assert (np.diff(controlled(still, "appearance-free").astype(int), axis=0) == 0).mean() > 0.95


def test_stripes_keep_what_moves_and_nothing_of_the_ground():
    frames = textured()
    mask = foreground(frames)
    for t, one in enumerate(mask):
        assert one[22:38, 8 + 3 * t : 22 + 3 * t].mean() > 0.9
        assert one[48:].mean() < 0.05
    made = controlled(frames, "stripes", seed=1)
    assert (made[mask] == frames[mask]).all()
    # Stripes: two colours and what is between, the same in all frames where the ground is.
    assert (made[0, 50:] == made[-1, 50:]).all()
    channels = made[0, 50:].reshape(-1, 3).T.astype(float)
    assert (np.abs(np.corrcoef(channels)) > 0.99).all()


def test_a_box_is_kept_where_there_is_one():
    frames = moving_square(4)
    made = controlled(frames, "stripes", box=(10, 5, 40, 30))
    assert (made[:, 5:30, 10:40] == frames[:, 5:30, 10:40]).all()
    assert (made[:, 40:] != frames[:, 40:]).any()
    still = controlled(frames, "still-foreground", box=(10, 5, 40, 30))
    assert (still == still[:1]).all()
    assert (still[0] == made[2]).all()


def test_evaluation_under_a_control(weights):
    model = sr.load_model(small, weights)
    plain = evaluate(model, SOURCE, ("random",), flows=("dis",), levels=(1.0,))
    found = evaluate(model, SOURCE, ("random",), flows=("dis",), levels=(1.0,), control="appearance-free")
    pixels = controlled(make_clip(SyntheticSpec(frames=8, height=32, width=32), 33, 0).frames, "appearance-free")
    logits = model(model.spec.clip(pixels)).double()[0]
    top = int(logits.argmax())
    row = next(row for row in found.rows if row["method"] == "answers" and row["video"].startswith("test/00000"))
    assert row["predicted"] == top
    assert row["margin"] == pytest.approx(float(logits[top] - (logits.sum() - logits[top]) / 7), rel=1e-5)
    assert {one["settings"] for one in plain.rows}.isdisjoint(one["settings"] for one in found.rows)
    # The truth of a clip is not that of its noise.
    assert not any("causal_mass" in one for one in found.rows)


def test_an_unknown_control():
    with pytest.raises(sr.InputError, match=r"no control 'stripe' \(did you mean 'stripes'"):
        controlled(moving_square(2), "stripe")
    with pytest.raises(sr.InputError, match=r"no control 'stripe' \(did you mean 'stripes'"):
        evaluate(None, SOURCE, control="stripe")
