"""What a network is shown while it learns: clips cut out of decoded videos, the same for the same seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ..clips.spec import ClipSpec, FloatArray, Frames
from ..errors import InputError
from ..evaluate.dataset import Dataset, LabelledVideo
from .recipes import Recipe


# Bytes of generated clips that are kept in memory.
_MOST_KEPT = 2**30


@dataclass(frozen=True)
class Skipped:
    """A video that could not be read, and why."""

    name: str
    why: str


class Samples:
    """The videos of a data set, decoded once to the size that clips are cut out of: uint8 [N,h,w,3] each.

    The generator's clips are kept where all of them together are below a gibibyte, and made anew each time otherwise.
    Videos that cannot be read are in ``skipped``.
    """

    def __init__(self, data: Dataset, spec: ClipSpec, recipe: Recipe) -> None:
        self.spec, self.recipe = spec, recipe
        self.kept: dict[int, Frames] = {}
        self.skipped: list[Skipped] = []
        made = next((video.made for video in data if video.made is not None), None)
        self.keeps_made = made is not None and made().frames.nbytes * len(data) < _MOST_KEPT
        videos: list[LabelledVideo] = []
        with ThreadPoolExecutor(2) as pool:
            for video, frames in zip(data, pool.map(self._decoded, data), strict=True):
                if isinstance(frames, InputError):
                    self.skipped.append(Skipped(video.name, str(frames)))
                    continue
                if frames is not None:
                    self.kept[len(videos)] = frames
                videos.append(video)
        self.videos = videos
        self.labels = np.array([data.index(video) for video in videos], dtype=np.int64)
        if not videos:
            raise InputError(f"{data.name}: none of {len(data)} videos can be read; the first: {self.skipped[0].why}")

    def __len__(self) -> int:
        return len(self.videos)

    def _decoded(self, video: LabelledVideo) -> Frames | InputError | None:
        if video.made is not None and not self.keeps_made:
            return None
        try:
            frames = video.frames()
        except InputError as error:
            return error
        if len(frames) < 2:
            return InputError(f"{video.name}: {len(frames)} frame; a clip needs at least 2")
        height, width = _size(self.spec, self.recipe, *frames.shape[1:3])
        return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])

    def frames(self, number: int) -> Frames:
        """Return a video's frames, as large as clips are cut out of."""
        if number in self.kept:
            return self.kept[number]
        frames = self.videos[number].frames()
        height, width = _size(self.spec, self.recipe, *frames.shape[1:3])
        if (height, width) == frames.shape[1:3]:
            return frames
        return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])

    def moments(self, at_most: int = 400) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Return means and standard deviations of the three channels, of the middle frame of up to so many videos."""
        chosen = np.linspace(0, len(self) - 1, min(len(self), at_most)).astype(int)
        pixels = [self.frames(int(number)) for number in chosen]
        middles = np.concatenate([frames[len(frames) // 2].reshape(-1, 3) for frames in pixels]).astype(np.float64)
        mean, std = middles.mean(0), middles.std(0).clip(1.0)
        return tuple(np.round(mean, 2).tolist()), tuple(np.round(std, 2).tolist())

    def order(self, seed: int, epoch: int) -> Iterator[list[int]]:
        """Yield the batches of one epoch as numbers of videos; a last one of a single clip is left out."""
        order = np.random.default_rng((seed, epoch)).permutation(len(self))
        for first in range(0, len(self), self.recipe.batch):
            batch = order[first : first + self.recipe.batch].tolist()
            if len(batch) > 1 or len(self) == 1:
                yield batch

    def batch(self, numbers: Sequence[int], seed: int, epoch: int) -> FloatArray:
        """Return the clips of some videos as they are shown in one epoch, float32 [B,3,T,H,W] in model units."""
        shown = []
        for number in numbers:
            random = np.random.default_rng((seed, epoch, number)) if self.recipe.augment else None
            shown.append(_cut(self.frames(number), self.spec, self.recipe, random))
        pixels = np.stack(shown)
        if self.recipe.augment and self.recipe.brightness:
            factors = [
                1 + self.recipe.brightness * (2 * np.random.default_rng((seed, epoch, number, 1)).random() - 1)
                for number in numbers
            ]
            scaled = pixels * np.array(factors, np.float32)[:, None, None, None, None]
            pixels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        return self.spec.from_pixels(pixels)


def middle_clip(frames: Frames, spec: ClipSpec) -> Frames:
    """Return the middle clip of a video as the network sees it: uint8 [T,crop,crop,3]."""
    return spec.pixels(frames, max(len(frames) - spec.span, 0) // 2)


def _size(spec: ClipSpec, recipe: Recipe, height: int, width: int) -> tuple[int, int]:
    zoomed = recipe.zoom if recipe.augment else 1.0
    if isinstance(spec.short_side, tuple):
        return round(spec.short_side[0] * zoomed), round(spec.short_side[1] * zoomed)
    return replace(spec, short_side=round(spec.short_side * zoomed)).resized(height, width)


def _cut(frames: Frames, spec: ClipSpec, recipe: Recipe, random: np.random.Generator | None) -> Frames:
    """Return one clip, uint8 [T,crop,crop,3]: drawn, or the middle one."""
    if random is None:
        return middle_clip(frames, spec)
    start = int(random.integers(max(len(frames) - spec.span, 0) + 1))
    chosen = spec.indices(len(frames), start)
    height, width = frames.shape[1:3]
    # From the network's own view of the video (zoomed out) to a closer one.
    side = int(random.integers(spec.crop, min(round(spec.crop * recipe.zoom), height, width) + 1))
    top, left = (int(random.integers(extent - side + 1)) for extent in (height, width))
    cropped = frames[chosen, top : top + side, left : left + side]
    if side != spec.crop:
        size = (spec.crop, spec.crop)
        cropped = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in cropped])
    if recipe.flip and random.random() < 0.5:
        cropped = cropped[:, :, ::-1]
    return np.ascontiguousarray(cropped)
