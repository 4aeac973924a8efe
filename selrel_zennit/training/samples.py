"""What a network is shown while it learns: clips cut out of decoded videos, the same for the same seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from ..clips.spec import ClipSpec, FloatArray, Frames
from ..clips.video import probe
from ..errors import InputError
from ..evaluate.dataset import Dataset, LabelledVideo
from .recipes import Recipe

# Bytes of decoded videos that stay in memory; what is beyond is decoded each time it is shown.
_MOST_KEPT = 2 * 2**30
# Videos decoded at a time, and batches on their way.
_AHEAD = 2


@dataclass(frozen=True)
class Skipped:
    """A video that could not be read, and why."""

    name: str
    why: str


class Samples:
    """The videos of a data set, decoded to the size that clips are cut out of, as far as ``most_kept`` bytes go.

    With a ``recipe``, a clip is cut out as that says. Without one it is the middle clip of its video, exactly as
    ``spec.pixels`` cuts it. Videos that cannot be read are in ``skipped``. Raises InputError where none can.
    """

    def __init__(self, data: Dataset, spec: ClipSpec, recipe: Recipe | None, most_kept: int = _MOST_KEPT) -> None:
        self.spec, self.recipe, self.most_kept = spec, recipe, most_kept
        self.skipped: list[Skipped] = []
        self._kept: dict[int, Frames] = {}
        self._bytes = 0
        self.videos: list[LabelledVideo] = []
        with ThreadPoolExecutor(_AHEAD) as pool:
            for video, frames in zip(data, pool.map(self._tried, data), strict=True):
                if isinstance(frames, InputError):
                    self.skipped.append(Skipped(video.name, str(frames)))
                    continue
                if frames is not None:
                    self._kept[len(self.videos)] = frames
                    self._bytes += frames.nbytes
                self.videos.append(video)
        self.labels = np.array([data.index(video) for video in self.videos], dtype=np.int64)
        if not self.videos:
            raise InputError(f"{data.name}: none of {len(data)} videos can be read; the first: {self.skipped[0].why}")

    def __len__(self) -> int:
        return len(self.videos)

    def _tried(self, video: LabelledVideo) -> Frames | InputError | None:
        """Return a video's frames, None where there is no more room for them, or what is wrong with it."""
        try:
            if self._bytes < self.most_kept:
                return self._decoded(video)
            if video.path is not None:
                probe(video.path)
            return None
        except InputError as error:
            return error

    def _decoded(self, video: LabelledVideo) -> Frames:
        frames = video.frames()
        if len(frames) < 2:
            raise InputError(f"{video.name}: {len(frames)} frame; a clip needs at least 2")
        if self.recipe is None:
            return middle_clip(frames, self.spec)
        sized = _zoomed(self.spec, self.recipe.zoom)
        return np.stack([sized.resize(frame) for frame in frames])

    def frames(self, number: int) -> Frames:
        """Return a video's frames as large as clips are cut out of, or its middle clip where there is no recipe."""
        return self._kept[number] if number in self._kept else self._decoded(self.videos[number])

    def moments(self, at_most: int = 400) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Return means and standard deviations of the three channels, of the middle frame of up to so many videos."""
        chosen = np.linspace(0, len(self) - 1, min(len(self), at_most)).astype(int)
        sums, count = np.zeros((2, 3)), 0
        for number in chosen:
            frames = self._read(int(number))
            if frames is not None:
                middle = frames[len(frames) // 2].reshape(-1, 3).astype(np.float64)
                sums += middle.sum(0), (middle**2).sum(0)
                count += len(middle)
        mean = sums[0] / count
        std = np.sqrt((sums[1] / count - mean**2).clip(1.0))
        return tuple(np.round(mean, 2).tolist()), tuple(np.round(std, 2).tolist())

    def order(self, seed: int, epoch: int) -> list[list[int]]:
        """Return the batches of one epoch as numbers of videos; a last one of a single clip is left out."""
        assert self.recipe is not None
        order = np.random.default_rng((seed, epoch)).permutation(len(self))
        batches = [
            order[first : first + self.recipe.batch].tolist() for first in range(0, len(self), self.recipe.batch)
        ]
        return [batch for batch in batches if len(batch) > 1 or len(batches) == 1]

    def batches(self, seed: int, epoch: int) -> Iterator[tuple[FloatArray, npt.NDArray[np.int64]]]:
        """Yield an epoch's clips, float32 [B,3,T,H,W] in model units, with their labels [B]; the next is on its way."""
        yield from self._ahead([(numbers, (seed, epoch)) for numbers in self.order(seed, epoch)])

    def middles(self, size: int = 16) -> Iterator[tuple[Frames, npt.NDArray[np.int64]]]:
        """Yield all clips in their order as pictures, uint8 [B,T,H,W,3], with their labels [B]."""
        for first in range(0, len(self), size):
            yield self._pixels(list(range(first, min(first + size, len(self)))), None)

    def _ahead(
        self, wanted: Sequence[tuple[list[int], tuple[int, int]]]
    ) -> Iterator[tuple[FloatArray, npt.NDArray[np.int64]]]:
        with ThreadPoolExecutor(1) as pool:
            coming = [pool.submit(self._pixels, *one) for one in wanted[:_AHEAD]]
            for place in range(len(wanted)):
                pixels, labels = coming.pop(0).result()
                if place + _AHEAD < len(wanted):
                    coming.append(pool.submit(self._pixels, *wanted[place + _AHEAD]))
                yield self.spec.from_pixels(pixels), labels

    def _pixels(self, numbers: Sequence[int], drawn: tuple[int, int] | None) -> tuple[Frames, npt.NDArray[np.int64]]:
        clips, labels = [], []
        for number in numbers:
            frames = self._read(number)
            if frames is None:
                continue
            if self.recipe is not None and drawn is not None:
                # A stream for each clip: what it shows depends on nothing that was drawn before.
                frames = cut(frames, self.spec, self.recipe, np.random.default_rng((*drawn, number)))
            clips.append(frames)
            labels.append(self.labels[number])
        empty: Frames = np.zeros((0, self.spec.frames, self.spec.crop, self.spec.crop, 3), np.uint8)
        return np.stack(clips) if clips else empty, np.array(labels, np.int64)

    def _read(self, number: int) -> Frames | None:
        """Return a video's frames, or None, and note it, where it turns out only now that it cannot be read."""
        try:
            return self.frames(number)
        except InputError as error:
            entry = Skipped(self.videos[number].name, str(error))
            if entry not in self.skipped:
                self.skipped.append(entry)
            return None


def measured(spec: ClipSpec, shown: Samples, standardise: bool) -> ClipSpec:
    """Return the ClipSpec with the data's channel means, and its standard deviations where these are wanted."""
    mean, std = shown.moments()
    if spec.channel_order == "BGR":
        mean, std = mean[::-1], std[::-1]
    low, high = spec.value_range
    scale = (high - low) / 255
    means = [low + value * scale for value in mean]
    return replace(spec, mean=means, std=[value * scale for value in std] if standardise else spec.std)  # type: ignore[arg-type]


def middle_clip(frames: Frames, spec: ClipSpec) -> Frames:
    """Return the middle clip of a video as the network sees it: uint8 [T,crop,crop,3]."""
    return spec.pixels(frames, max(len(frames) - spec.span, 0) // 2)


def cut(frames: Frames, spec: ClipSpec, recipe: Recipe, random: np.random.Generator) -> Frames:
    """Draw one clip out of frames of a size that is ``recipe.zoom`` times ``spec``'s: uint8 [T,crop,crop,3].

    Where it begins is drawn always. The square, of a side between the crop's and ``zoom`` times that, lies about the
    centre, as far off in width as it can be in height; without ``zoom`` it is the centre crop.
    """
    start = int(random.integers(max(len(frames) - spec.span, 0) + 1))
    height, width = frames.shape[1:3]
    largest = min(round(spec.crop * recipe.zoom), height, width)
    side = int(random.integers(min(spec.crop, largest), largest + 1))
    reach = 0 if recipe.zoom == 1 else (min(height, width) - side) // 2
    top, left = ((extent - side) // 2 + int(random.integers(-reach, reach + 1)) for extent in (height, width))
    # Copied: indexing by an array leaves the frames' own memory out of it.
    clip = frames[spec.indices(len(frames), start), top : top + side, left : left + side]
    if side != spec.crop:
        size = (spec.crop, spec.crop)
        clip = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in clip])
    if recipe.flip and random.random() < 0.5:
        clip = clip[:, :, ::-1]
    if recipe.brightness:
        factor = np.float32(1 + recipe.brightness * (2 * random.random() - 1))
        clip = np.clip(np.rint(clip * factor), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(clip)


def _zoomed(spec: ClipSpec, zoom: float) -> ClipSpec:
    if isinstance(spec.short_side, tuple):
        return replace(spec, short_side=(round(spec.short_side[0] * zoom), round(spec.short_side[1] * zoom)))
    return replace(spec, short_side=round(spec.short_side * zoom))
