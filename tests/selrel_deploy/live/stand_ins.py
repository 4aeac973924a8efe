"""An engine and a source that need no network: what they show is known."""

import numpy as np

from selrel_deploy.live.engines import Engine, Looked
from selrel_deploy.live.sources import Source
from selrel_zennit.clips.spec import ClipSpec
from selrel_zennit.explanation import Explanation

SPEC = ClipSpec(frames=4, short_side=16, crop=16)
HOSTILE = "<img src=x onerror=alert(1)>"


class Brightness(Engine):
    """Two classes: bright and dark. Relevance is the brightness; the mask, what changes from frame to frame."""

    name, spec, num_classes, motion = "brightness", SPEC, 2, False
    class_names = (HOSTILE, "dark")

    def __init__(self, name="brightness", seconds=0.0, clock=None):
        self.name, self.seconds, self.clock = name, seconds, clock
        self.class_names = [HOSTILE, "dark"]
        self.settings = {"model": "stand-in", "weights": None, "method": name, "preset": "default", "n_sigma": 4.0}
        self.settings |= {"runner": "none", "device": "cpu"}
        self.info = {}
        self.looked = 0

    def look(self, pixels, target, when):
        self.looked += 1
        relevance = pixels[None, ..., 0].astype(np.float32) / 255
        logits = np.array([[4 * relevance.mean() + 1, 0.5]], np.float32)
        if when is not None and when.measure(logits) < when.probability:
            return Looked(logits, None)
        mask = np.zeros(relevance.shape, bool)
        mask[:, 1:] = np.abs(np.diff(relevance, axis=1)) > 0.2
        chosen = np.array([max(target, 0)], np.int64)
        return Looked(logits, Explanation(logits, chosen, relevance, np.where(mask, relevance, 0), mask))


def moving(count=8):
    """A bright square that crosses a grey picture, uint8 [count,16,16,3]."""
    frames = np.full((count, 16, 16, 3), 60, np.uint8)
    for step in range(count):
        frames[step, 4:9, step : step + 5] = 250
    return frames


class Frames(Source):
    """Frames that are given, each time it is opened; ``fails`` says in which of these times it breaks off."""

    name = "given frames"

    def __init__(self, frames, lives=True, rate=200.0, fails=()):
        self.frames, self.lives, self.rate, self.fails, self.opened = frames, lives, rate, fails, 0

    def open(self):
        self.opened += 1
        yield from self.frames
        if self.opened in self.fails:
            raise self.fails[self.opened]
