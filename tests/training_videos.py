"""Small videos of two motions and of none, in folders SPLIT/CLASS/FILE."""

import numpy as np

from selrel_zennit import ClipSpec
from selrel_zennit.clips.video import write_mp4

SPEC = ClipSpec(frames=8, stride=2, short_side=32, crop=32)
# Where a square of 12 pixels goes in each of 22 frames: two classes of motion, one of none.
STEPS = {"down": (2, 0), "right": (0, 2), "still": (0, 0)}


def video(step, seed, count=22):
    """A bright square on dull noise, uint8 [N,40,48,3]."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(30, 90, (1, 40, 48, 3), dtype=np.uint8), count, axis=0)
    top, left = rng.integers(0, 28), rng.integers(0, 36)
    for index, frame in enumerate(frames):
        rows = (top + step[0] * index + np.arange(12)) % 40
        columns = (left + step[1] * index + np.arange(12)) % 48
        frame[np.ix_(rows, columns)] = 230
    return frames


def write_videos(folder, train=4, test=2):
    seed = 0
    for split, count in (("train", train), ("test", test)):
        for name, step in STEPS.items():
            for number in range(count):
                seed += 1
                path = folder / split / name / f"{number}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_mp4(path, video(step, seed), 25)
    return folder
