"""Explanation: what comes out of explaining a batch of clips, checked on construction. NumPy alone."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .files import atomic_path
from .motion_split import ARRAYS as SPLIT_ARRAYS
from .motion_split import MotionSplit, joined_splits

FloatArray = npt.NDArray[np.float32]

FIELDS = ("logits", "target", "relevance", "motion_relevance", "mask")


class MotionShare(NamedTuple):
    """How much of an explanation the selection kept, each [B] in 0…1 (NaN where a map is zero everywhere)."""

    area: npt.NDArray[np.float64]
    mass: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Explanation:
    """Logits, relevance and motion relevance of a batch of clips.

    logits            float [B,K]      what the network said
    target            int   [B]        the class explained
    relevance         float [B,T,H,W]  channels summed
    motion_relevance  float [B,T,H,W]  ``where(mask, relevance, 0)``
    mask              bool  [B,T,H,W]  what the selection kept
    unseen            strings          operations of the network that no rule of the method saw (``strict=False``)
    split             MotionSplit      the margin taken apart: what of it is motion; None where that was not asked for
    frames            uint8 [B,T,H,W,3] what the network saw, RGB, for pictures; None where that is not known

    ``explanation[i]`` is one clip of the batch, ``save`` and ``load`` keep it in a file, and a notebook shows pictures.
    Raises ValueError, naming the field and the shape it got, for anything that does not fit together, and for values
    that are not finite.
    """

    logits: FloatArray
    target: npt.NDArray[np.int64]
    relevance: FloatArray
    motion_relevance: FloatArray
    mask: npt.NDArray[np.bool_]
    unseen: tuple[str, ...] = field(default=(), kw_only=True)
    split: MotionSplit | None = field(default=None, kw_only=True)
    frames: npt.NDArray[np.uint8] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        shape = np.shape(self.relevance)
        batch = shape[:1]
        expected = {
            "logits": (2, "[B,K]", np.floating),
            "target": (1, "[B]", np.integer),
            "relevance": (4, "[B,T,H,W]", np.floating),
            "motion_relevance": (4, "[B,T,H,W]", np.floating),
            "mask": (4, "[B,T,H,W]", np.bool_),
        }
        for name, (ndim, letters, kind) in expected.items():
            value = getattr(self, name)
            if not isinstance(value, np.ndarray):
                raise ValueError(f"{name} must be a NumPy array, got {type(value).__name__}")
            if value.ndim != ndim:
                raise ValueError(f"{name} must be {letters}, got {value.shape}")
            if not np.issubdtype(value.dtype, kind):
                raise ValueError(f"{name} must be of kind {kind.__name__}, got {value.dtype}")
            if value.shape[:1] != batch:
                raise ValueError(f"{name} has a batch of {value.shape[0]}, relevance of {batch[0]}")
            if ndim == 4 and value.shape != shape:
                raise ValueError(f"{name} must have relevance's shape {shape}, got {value.shape}")
            if kind is np.floating and not np.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or infinity")
        classes = self.logits.shape[1]
        if self.target.size and not (self.target.min() >= 0 and self.target.max() < classes):
            raise ValueError(f"target must lie in 0…{classes - 1}, got {self.target.tolist()}")
        if not np.array_equal(self.motion_relevance, np.where(self.mask, self.relevance, 0)):
            raise ValueError("motion_relevance must be relevance where mask is set and zero elsewhere")
        if self.split is not None and self.split.motion_part.shape != shape:
            raise ValueError(f"the split must have relevance's shape {shape}, got {self.split.motion_part.shape}")
        if self.frames is not None and (self.frames.shape != (*shape, 3) or self.frames.dtype != np.uint8):
            raise ValueError(f"frames must be uint8 {(*shape, 3)}, got {self.frames.dtype} {self.frames.shape}")

    def __len__(self) -> int:
        return int(self.relevance.shape[0])

    def __getitem__(self, index: int) -> Explanation:
        """Return one clip of the batch as a batch of one; a negative index counts from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"clip {index} of an explanation of {len(self)}")
        return self.clip(index % len(self))

    def __repr__(self) -> str:
        count, *size = self.relevance.shape
        clips = f"{count} clip{'' if count == 1 else 's'} of {'×'.join(map(str, size))}"
        targets = [str(target) for target in dict.fromkeys(self.target.tolist())]
        more = f", … ({len(targets)} in all)" if len(targets) > 4 else ""
        explained = f"class {', '.join(targets[:4])}{more} of {self.logits.shape[1]}"
        share = self.motion_share()
        parts = [clips, explained, f"motion {_spread(share.mass)} of |R| in {_spread(share.area)} of its area"]
        if self.unseen:
            parts.append(f"{len(self.unseen)} operations unseen")
        return f"Explanation({', '.join(parts)})"

    def _repr_html_(self) -> str:
        from .outputs.notebook import explanation_html

        return explanation_html(self)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all that a file holds of it, by name; see ``save``."""
        held: dict[str, npt.NDArray[Any]] = {name: getattr(self, name) for name in FIELDS}
        if self.frames is not None:
            held["frames"] = self.frames
        if self.unseen:
            held["unseen"] = np.array(self.unseen)
        if self.split is not None:
            held |= {name: getattr(self.split, name) for name in SPLIT_ARRAYS}
            held["reference"] = np.array(self.split.reference)
        return held

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a compressed .npz with an array for each field, as `selrel explain` does; whole or not at all.

        Raises InputError for a name that does not end in .npz, and a place that cannot be written.
        """
        if not os.fspath(path).endswith(".npz"):
            raise InputError(f"{os.fspath(path)}: an explanation is saved as NAME.npz")
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **self.arrays())  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Explanation:
        """Read what ``save``, `selrel explain` and `selrel run` write, and check it.

        Raises InputError for a file that does not exist, is no .npz, or holds no explanation.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                held = {name: file[name] for name in file.files}
        except OSError as error:
            raise InputError(f"cannot read {os.fspath(path)}: {error.strerror or 'it is no .npz file'}") from error
        except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise InputError(f"{os.fspath(path)} is no .npz file, or a damaged one: write it again") from error
        missing = [name for name in FIELDS if name not in held]
        if missing:
            raise InputError(f"{os.fspath(path)} is no explanation: it has no array {missing[0]!r}")
        try:
            split = None
            if all(name in held for name in SPLIT_ARRAYS):
                reference = str(held.get("reference", "frames"))
                split = MotionSplit(**{name: held[name] for name in SPLIT_ARRAYS}, reference=reference)
            unseen = tuple(str(text) for text in held.get("unseen", ()))
            fields = {name: held[name] for name in FIELDS}
            return cls(**fields, unseen=unseen, split=split, frames=held.get("frames"))
        except ValueError as error:
            raise InputError(f"{os.fspath(path)} holds no explanation: {error}") from error

    def clip(self, index: int) -> Explanation:
        """Return the explanation of one clip of the batch, as a batch of one."""
        arrays = {name: getattr(self, name)[index : index + 1] for name in FIELDS}
        split = None if self.split is None else self.split.clip(index)
        frames = None if self.frames is None else self.frames[index : index + 1]
        return Explanation(**arrays, unseen=self.unseen, split=split, frames=frames)

    @property
    def static_relevance(self) -> FloatArray:
        """What the selection dropped, [B,T,H,W]."""
        return np.where(self.mask, np.float32(0), self.relevance)

    def probabilities(self) -> npt.NDArray[np.float64]:
        """Softmax of the logits, float64 [B,K]."""
        shifted = self.logits.astype(np.float64) - self.logits.max(axis=1, keepdims=True)
        exponentials = np.exp(shifted)
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))

    def motion_share(self) -> MotionShare:
        """Return the share of relevance kept: area = |R≠0 ∧ mask| ÷ |R≠0|, mass = Σ|R|·mask ÷ Σ|R|, each [B]."""
        axes = (1, 2, 3)
        nonzero, size = self.relevance != 0, np.abs(self.relevance.astype(np.float64))
        with np.errstate(invalid="ignore"):
            area = (nonzero & self.mask).sum(axes) / nonzero.sum(axes)
            mass = (size * self.mask).sum(axes) / size.sum(axes)
        return MotionShare(np.asarray(area), np.asarray(mass))


class ExplainedClip(NamedTuple):
    """One clip of a video, explained.

    start         first frame of the clip in the video
    explanation   of this clip alone, a batch of one, with its ``frames``: what the network saw
    seconds       read, forward_backward, select (None where it is part of another stage), split, frozen
    frozen_share  the motion share, [1], of the clip frozen to its middle frame, where nothing moves; None: not computed
    """

    start: int
    explanation: Explanation
    seconds: dict[str, Any]
    frozen_share: MotionShare | None = None


@dataclass(frozen=True, eq=False)
class ClipExplanations:
    """The clips of one video, explained: the batch axis of ``explanation`` runs over clips.

    pixels        uint8 [B,T,H,W,3]  what the network saw
    starts        [B]                first frame of each clip in the video
    seconds       [B]                per clip: read, forward_backward, select, frozen
    frame_rate    clip frames per second of video
    notes         what was done to the input: loop padding, dropped alpha, …
    info          what the attributor is (``attributor.info``)
    frozen_share  the motion share of each clip frozen to its middle frame, where nothing moves; None: not computed

    Raises ValueError when the numbers of clips differ.
    """

    explanation: Explanation
    pixels: npt.NDArray[np.uint8]
    starts: list[int]
    seconds: list[dict[str, float]]
    frame_rate: float
    notes: list[str]
    info: dict[str, Any]
    frozen_share: MotionShare | None = None

    def __post_init__(self) -> None:
        expected = (*self.explanation.relevance.shape, 3)
        if self.pixels.shape != expected or self.pixels.dtype != np.uint8:
            raise ValueError(f"pixels must be uint8 {expected}, got {self.pixels.dtype} {self.pixels.shape}")
        if not len(self.starts) == len(self.seconds) == len(self.explanation):
            raise ValueError(
                f"{len(self.starts)} starts and {len(self.seconds)} timings for {len(self.explanation)} clips"
            )
        if self.frozen_share is not None and len(self.frozen_share.mass) != len(self.explanation):
            raise ValueError(f"{len(self.frozen_share.mass)} frozen shares for {len(self.explanation)} clips")

    @classmethod
    def of(
        cls, clips: Iterable[ExplainedClip], frame_rate: float, notes: list[str], info: dict[str, Any]
    ) -> ClipExplanations:
        """Return clips, one or more, as one batch. ``notes`` and ``info`` may grow while ``clips`` are made."""
        found = list(clips)
        explanation = joined([one.explanation for one in found])
        if explanation.frames is None:
            raise ValueError("explained clips must hold the frames that the network saw")
        still = [one.frozen_share for one in found if one.frozen_share is not None]
        return cls(
            explanation=explanation,
            pixels=explanation.frames,
            starts=[one.start for one in found],
            seconds=[one.seconds for one in found],
            frame_rate=frame_rate,
            notes=notes,
            info=info,
            frozen_share=MotionShare(*map(np.concatenate, zip(*still, strict=True))) if still else None,
        )

    def __len__(self) -> int:
        return len(self.explanation)

    def __getitem__(self, index: int) -> ExplainedClip:
        """Return one clip; a negative index counts from the end."""
        explanation, index = self.explanation[index], index % len(self)
        frames = self.pixels[index : index + 1]
        still = (
            None if self.frozen_share is None else MotionShare(*(part[index : index + 1] for part in self.frozen_share))
        )
        return ExplainedClip(self.starts[index], replace(explanation, frames=frames), self.seconds[index], still)

    def __iter__(self) -> Iterator[ExplainedClip]:
        return (self[index] for index in range(len(self)))

    @property
    def logits(self) -> FloatArray:
        """What the network said of each clip, [B,K]."""
        return self.explanation.logits

    @property
    def target(self) -> npt.NDArray[np.int64]:
        """The class explained in each clip, [B]."""
        return self.explanation.target

    def __repr__(self) -> str:
        starts = ", ".join(map(str, self.starts[:4])) + (", …" if len(self.starts) > 4 else "")
        return f"ClipExplanations({self.explanation!r}, from frame {starts}, {self.info.get('method') or 'no name'})"

    def _repr_html_(self) -> str:
        return replace(self.explanation, frames=self.pixels)._repr_html_()


def joined(explanations: Sequence[Explanation]) -> Explanation:
    """Return one explanation of the clips of several."""
    unseen = tuple(dict.fromkeys(text for one in explanations for text in one.unseen))
    arrays = {name: np.concatenate([getattr(one, name) for one in explanations]) for name in FIELDS}
    splits = [one.split for one in explanations]
    split = joined_splits([one for one in splits if one is not None]) if all(splits) else None
    seen = [one.frames for one in explanations if one.frames is not None]
    frames = np.concatenate(seen) if len(seen) == len(explanations) else None
    return Explanation(**arrays, unseen=unseen, split=split, frames=frames)


def _spread(shares: npt.NDArray[np.float64]) -> str:
    """Return shares in words: "12%", "9% to 14%" over several clips, n/a where none is defined."""
    known = shares[np.isfinite(shares)]
    if not known.size:
        return "n/a"
    ends = [f"{end:.0%}" if end >= 0.0995 else f"{end:.1%}" for end in (known.min(), known.max())]
    return " to ".join(dict.fromkeys(ends))
