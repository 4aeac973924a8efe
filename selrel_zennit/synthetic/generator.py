"""Make clips whose cause is known, with masks and exact flow.

Every clip holds a causal sprite, whose motion is its class; a distractor, drawn alike, whose motion is erratic; and a
static scene, which may be tied to the class. The causal sprite lies in front of the distractor, and both in front of
the scene. The world wraps around at the frame's edges, so nothing ever leaves the frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..clips.cutting import frozen_frame
from ..clips.spec import FloatArray, Frames
from ..errors import InputError
from .motion import CLASSES, Array, erratic, largest_radius, pose, steady
from .scenes import SCENES, draw_scene
from .sprites import Placed, Sprite, draw_sprite

Mask = npt.NDArray[np.bool_]

# Raised whenever a clip of a given spec, seed and index would look different.
GENERATOR_VERSION = 1

# One random stream for each thing, so that a change of one (the bias dial, the class) leaves the others as they were.
_STREAMS = ("class", "causal", "distractor", "scene", "camera")


@dataclass(frozen=True)
class SyntheticSpec:
    """What clips to make: size, scene cue, distractor, camera.

    ``bias`` is the share of clips whose scene is their class's own; the others get a random one of the eight, the own
    included. ``opposed`` gives every clip a scene of another class. ``shake`` shifts the camera at each frame by up to
    so many whole pixels each way, ``pan`` moves it by up to so many pixels per frame. Camera steps are whole pixels, so
    that the scene is never resampled.

    Raises InputError on construction when a field cannot be.
    """

    frames: int = 16
    height: int = 112
    width: int = 112
    bias: float = 0.0
    opposed: bool = False
    distractor: bool = True
    shake: int = 0
    pan: int = 0

    def __post_init__(self) -> None:
        for name, least in (("frames", 2), ("height", 32), ("width", 32), ("shake", 0), ("pan", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not 0.0 <= self.bias <= 1.0:
            raise InputError(f"bias must lie in 0…1, got {self.bias!r}")
        if self.opposed and self.bias:
            raise InputError(f"opposed scenes leave no bias: set bias to 0, got {self.bias!r}")


@dataclass(frozen=True, eq=False)
class SyntheticClip:
    """One clip and the truth about it. The masks and the flow are computed when they are first asked for.

    ``frames`` uint8 [T,H,W,3] RGB. ``class_index`` and ``scene_index`` count in CLASSES and SCENES. ``causal_states``
    and ``distractor_states`` float64 [T,4] are x, y, orientation and logarithmic size in turns, not wrapped (None
    without a distractor). ``camera`` int [T,2] is the world position, x and y in pixels, of the frame's corner.
    """

    spec: SyntheticSpec
    seed: int
    index: int
    class_index: int
    scene_index: int
    frames: Frames
    causal_states: Array
    distractor_states: Array | None
    camera: npt.NDArray[np.int64]
    _causal: Sprite
    _distractor: Sprite

    def __repr__(self) -> str:
        size = "×".join(map(str, self.frames.shape[:3]))
        return f"SyntheticClip({size}, {self.class_name} on {self.scene_name}, seed {self.seed}, index {self.index})"

    @property
    def class_name(self) -> str:
        """The class, one of CLASSES."""
        return CLASSES[self.class_index]

    @property
    def scene_name(self) -> str:
        """The scene, one of SCENES."""
        return SCENES[self.scene_index]

    @cached_property
    def causal_mask(self) -> Mask:
        """Where the causal sprite is seen, bool [T,H,W]."""
        return self._covered(self._causal, self.causal_states)

    @cached_property
    def distractor_mask(self) -> Mask:
        """Where the distractor is seen, not hidden by the causal sprite, bool [T,H,W]."""
        if self.distractor_states is None:
            return np.zeros_like(self.causal_mask)
        return self._covered(self._distractor, self.distractor_states) & ~self.causal_mask

    @cached_property
    def scene_mask(self) -> Mask:
        """Where the scene is seen, bool [T,H,W]. The three masks share out every pixel."""
        return ~(self.causal_mask | self.distractor_mask)

    @cached_property
    def flow(self) -> FloatArray:
        """Exact forward flow of the surface seen at frame t, float32 [T-1,H,W,2], x then y, in pixels per frame.

        Camera motion is included. Flow may point out of the frame: what leaves at one edge comes back at the other.
        Where a sprite's size starts again from the other end, the flow is that of the jump.
        """
        height, width = self.spec.height, self.spec.width
        flow = np.empty((self.spec.frames - 1, height, width, 2), np.float32)
        flow[:] = -np.diff(self.camera, axis=0)[:, None, None, :]
        layers = [(self._distractor, self.distractor_states, self.distractor_mask)]
        layers.append((self._causal, self.causal_states, self.causal_mask))
        for sprite, states, seen in layers:
            if states is None:
                continue
            poses = self._poses(states)
            for t, (before, after) in enumerate(pairwise(poses)):
                placed = sprite.place(before, height, width)
                visible = placed.mask & seen[t][placed.index]
                rows, columns = np.nonzero(visible)
                target = flow[t]
                target[placed.rows[rows] % height, placed.columns[columns] % width] = _sprite_flow(
                    placed, rows, columns, before, after
                )
        return flow

    def _poses(self, states: Array) -> Array:
        poses = pose(states, self.spec.height, self.spec.width)
        poses[:, :2] -= self.camera
        return poses

    def _covered(self, sprite: Sprite, states: Array) -> Mask:
        covered = np.zeros(self.frames.shape[:3], np.bool_)
        for mask, frame_pose in zip(covered, self._poses(states), strict=True):
            placed = sprite.place(frame_pose, self.spec.height, self.spec.width)
            mask[placed.index] = placed.mask
        return covered


def make_clip(
    spec: SyntheticSpec, seed: int, index: int, *, class_index: int | None = None, scene_index: int | None = None
) -> SyntheticClip:
    """Return clip ``index`` of ``seed``: the same whatever else is made, before it or beside it.

    Each eight successive clips, from a multiple of eight, hold every class once. ``class_index`` and ``scene_index``
    overrule the drawn ones and leave the rest of the clip as it was, so clips that differ in their cause alone can be
    set side by side. Raises InputError for a negative seed or index and for a class or scene that there is not.
    """
    if seed < 0 or index < 0:
        raise InputError(f"seed and index must be at least 0, got {seed} and {index}")
    for name, value in (("class_index", class_index), ("scene_index", scene_index)):
        if value is not None and not 0 <= value < len(CLASSES):
            raise InputError(f"{name} must lie in 0…{len(CLASSES) - 1}, got {value}")
    streams = {name: _stream(seed, index, number) for number, name in enumerate(_STREAMS) if name != "class"}
    label = drawn_class(seed, index) if class_index is None else class_index
    drawn_scene = _drawn_scene(streams["scene"], spec, label)
    scene_index = drawn_scene if scene_index is None else scene_index

    size = (spec.height, spec.width)
    causal_states = steady(streams["causal"], spec.frames, label)
    distractor_states = erratic(streams["distractor"], spec.frames) if spec.distractor else None
    causal, distractor = (draw_sprite(streams[name], largest_radius(*size)) for name in ("causal", "distractor"))
    scene = draw_scene(streams["scene"], SCENES[scene_index], *size)
    camera = _camera(streams["camera"], spec)

    frames = np.empty((spec.frames, *scene.shape), np.uint8)
    layers = [(distractor, distractor_states)] if distractor_states is not None else []
    layers.append((causal, causal_states))
    poses = [(sprite, pose(states, *size)) for sprite, states in layers]
    for t, (frame, (x, y)) in enumerate(zip(frames, camera, strict=True)):
        frame[:] = np.roll(scene, (-y, -x), axis=(0, 1)) if x or y else scene
        for sprite, path in poses:
            sprite.place(path[t] - (x, y, 0, 0), *size).paint(frame)
    return SyntheticClip(
        spec, seed, index, label, scene_index, frames, causal_states, distractor_states, camera, causal, distractor
    )


def dataset(spec: SyntheticSpec, seed: int, count: int, start: int = 0) -> Iterator[SyntheticClip]:
    """Yield ``count`` clips of one seed, from clip ``start`` on. Other seeds give other clips: one seed per split."""
    return (make_clip(spec, seed, index) for index in range(start, start + count))


def frozen(frames: Frames, at: int | None = None) -> Frames:
    """Return a clip without motion: frame ``at`` (the middle one) of uint8 [T,H,W,3], repeated T times."""
    at = frozen_frame(len(frames)) if at is None else at
    if not 0 <= at < len(frames):
        raise InputError(f"at must lie in 0…{len(frames) - 1} ({len(frames)} frames), got {at}")
    return np.repeat(frames[at : at + 1], len(frames), axis=0)


def _stream(seed: int, index: int, number: int) -> np.random.Generator:
    # PCG64 and SeedSequence give the same bits in every NumPy version; only uniform numbers are drawn from them.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((GENERATOR_VERSION, seed, index, number))))


def drawn_class(seed: int, index: int) -> int:
    """Return the class of a clip, of which nothing is made."""
    block, place = divmod(index, len(CLASSES))
    order = np.argsort(_stream(seed, block, _STREAMS.index("class")).random(len(CLASSES)), kind="stable")
    return int(order[place])


def _drawn_scene(rng: np.random.Generator, spec: SyntheticSpec, label: int) -> int:
    own, other = rng.random(2)
    if spec.opposed:
        return (label + 1 + int(other * (len(SCENES) - 1))) % len(SCENES)
    return label if own < spec.bias else int(other * len(SCENES))


def _camera(rng: np.random.Generator, spec: SyntheticSpec) -> npt.NDArray[np.int64]:
    velocity = np.floor(rng.random(2) * (2 * spec.pan + 1)) - spec.pan
    shakes = np.floor(rng.random((spec.frames, 2)) * (2 * spec.shake + 1)) - spec.shake
    return np.asarray(np.arange(spec.frames)[:, None] * velocity + shakes, np.int64)


def _sprite_flow(
    placed: Placed, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], before: Array, after: Array
) -> Array:
    """Where each pixel's point of the sprite goes when the pose changes, less where it is. [N,2]."""
    offsets = np.stack([placed.columns[columns] - before[0], placed.rows[rows] - before[1]], axis=1)
    angle, scale = after[2] - before[2], after[3] / before[3]
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    turned = offsets @ np.array([[cosine, sine], [-sine, cosine]])
    return np.asarray(turned - offsets + (after[:2] - before[:2]))
