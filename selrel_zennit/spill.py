"""Explanations of any number of clips, kept on disk. NumPy alone."""

from __future__ import annotations

import os
import tempfile
import weakref
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .clips.cutting import CutClip
from .explanation import FIELDS, ClipExplanations, ExplainedClip, Explanation, MotionShare
from .loop import ClipStream
from .motion_split import ARRAYS as SPLIT_ARRAYS
from .motion_split import MotionSplit

# Arrays of so many axes, [1,T,H,W] and more, are as large as a clip: they go to disk.
_MAP = 4


class ArrayFile:
    """Arrays of one shape and type in a temporary file: appended, then read in any order.

    The file has no name where the system allows that; it is gone when this object is, or the process.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, like: npt.NDArray[Any]) -> None:
        self.shape, self.dtype, self.count = like.shape, like.dtype, 0
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, it lives as long as this object
        weakref.finalize(self, self._file.close)

    def append(self, array: npt.NDArray[Any]) -> None:
        """Write an array behind the others. Raises ValueError for one of another shape or type."""
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"arrays must be {self.dtype} {self.shape}, got {array.dtype} {array.shape}")
        self._file.seek(0, os.SEEK_END)
        self._file.write(np.ascontiguousarray(array).data)
        self.count += 1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        if not 0 <= index < self.count:
            raise IndexError(f"array {index} of {self.count}")
        found = np.empty(self.shape, self.dtype)
        self._file.seek(index * found.nbytes)
        self._file.readinto(found.data)  # type: ignore[attr-defined]
        return found


class StoredArrays:
    """Arrays of many clips by name, each [1,…]: large ones on disk, the small rest in memory.

    ``folder`` is where the temporary files lie; None: where the system puts such.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._folder = folder
        self._maps: dict[str, ArrayFile] = {}
        self._rest: dict[str, list[npt.NDArray[Any]]] = {}
        self._count = 0

    def append(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep the arrays of one clip, of the same names and shapes each time."""
        for name, array in arrays.items():
            if array.ndim >= _MAP:
                self._maps.setdefault(name, ArrayFile(self._folder, array)).append(array)
            else:
                self._rest.setdefault(name, []).append(array)
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def names(self) -> list[str]:
        """Return which arrays there are of every clip."""
        return [*self._maps, *self._rest]

    def array(self, name: str, index: int) -> npt.NDArray[Any]:
        """Return one clip's part of an array, [1,…]."""
        return self._maps[name][index] if name in self._maps else self._rest[name][index]

    def each(self, name: str) -> Iterator[npt.NDArray[Any]]:
        """Yield the parts of an array, clip by clip."""
        return (self.array(name, index) for index in range(self._count))

    def whole(self, name: str) -> npt.NDArray[Any]:
        """Return an array of all clips, [B,…], in memory."""
        return np.concatenate(list(self.each(name)))

    def save(self, path: str | os.PathLike[str], more: Mapping[str, npt.NDArray[Any]] | None = None) -> None:
        """Write NAME.npz, compressed: every array of all clips as one, clip by clip, and ``more`` as they are."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name in self.names():
                first = self.array(name, 0)
                header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
                with file.open(f"{name}.npy", "w", force_zip64=True) as part:
                    shape = (self._count, *first.shape[1:])
                    np.lib.format.write_array_header_1_0(part, {**header, "shape": shape})
                    for array in self.each(name):
                        part.write(np.ascontiguousarray(array).data)
            for name, array in (more or {}).items():
                with file.open(f"{name}.npy", "w") as part:
                    np.lib.format.write_array(part, array, allow_pickle=False)


class StoredExplanations:
    """Explanations of single clips, of one network and method, with the maps on disk."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.arrays = StoredArrays(folder)
        self._unseen: dict[str, None] = {}
        self._reference = ""

    def append(self, explanation: Explanation) -> None:
        """Keep an explanation, a batch of one."""
        arrays = explanation.arrays()
        # What no rule saw is one list for all clips, as is the reference.
        for name in ("unseen", "reference"):
            arrays.pop(name, None)
        self._unseen |= dict.fromkeys(explanation.unseen)
        self._reference = "" if explanation.split is None else explanation.split.reference
        self.arrays.append(arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> Explanation:
        """Read one explanation back; a negative index counts from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        held: dict[str, Any] = {name: self.arrays.array(name, index % len(self)) for name in self.arrays.names()}
        split = None
        if self._reference:
            split = MotionSplit(**{name: held[name] for name in SPLIT_ARRAYS}, reference=self._reference)
        explanation = Explanation(**{name: held[name] for name in FIELDS})
        return replace(explanation, unseen=tuple(self._unseen), split=split, frames=held.get("frames"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what ``Explanation.save`` does of all clips as one batch, clip by clip."""
        more = {"unseen": np.array(tuple(self._unseen))} if self._unseen else {}
        if self._reference:
            more["reference"] = np.array(self._reference)
        self.arrays.save(path, more)


class StoredClips:
    """The explained clips of a video, as ClipExplanations has them, with the maps on disk.

    frame_rate, notes and info are those of the stream; ``starts`` and ``seconds`` have one entry per clip. Made by
    ``of``, which reads a stream to its end.
    """

    def __init__(
        self, frame_rate: float, notes: list[str], info: dict[str, Any], folder: str | os.PathLike[str] | None = None
    ) -> None:
        self.frame_rate, self.notes, self.info = frame_rate, notes, info
        self.explanations = StoredExplanations(folder)
        self.starts: list[int] = []
        self.seconds: list[dict[str, Any]] = []
        self._shares: list[MotionShare | None] = []

    @classmethod
    def of(cls, clips: ClipStream | ClipExplanations, folder: str | os.PathLike[str] | None = None) -> StoredClips:
        """Keep clips as they come. ``folder`` is where the temporary files lie; None: where the system puts such."""
        kept = cls(clips.frame_rate, clips.notes, clips.info, folder)
        for clip in clips:
            kept.explanations.append(clip.explanation)
            kept.starts.append(clip.start)
            kept.seconds.append(clip.seconds)
            kept._shares.append(clip.frozen_share)
        return kept

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> ExplainedClip:
        """Read one clip back; a negative index counts from the end."""
        explanation = self.explanations[index]
        return ExplainedClip(self.starts[index], explanation, self.seconds[index], self._shares[index])

    def __iter__(self) -> Iterator[ExplainedClip]:
        return (self[index] for index in range(len(self)))

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """What the network said of each clip, [B,K]."""
        return self.explanations.arrays.whole("logits")

    @property
    def target(self) -> npt.NDArray[np.int64]:
        """The class explained in each clip, [B]."""
        return self.explanations.arrays.whole("target")

    @property
    def surest(self) -> int:
        """The clip in which the network was surest of the (first) class explained."""
        return int(np.argmax(self.logits[:, self.target[0]]))

    @property
    def again(self) -> CutAgain:
        """The clips themselves, as ``explain_clips`` takes them: to explain them once more, nothing is decoded."""
        return CutAgain(self)


class CutAgain:
    """What the network saw of the clips of a video, from disk; as often as it is asked for."""

    def __init__(self, kept: StoredClips) -> None:
        self._kept = kept

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[CutClip]:
        for index, start in enumerate(self._kept.starts):
            frames = self._kept.explanations.arrays.array("frames", index)[0]
            yield CutClip(start, len(frames), frames, frames, 0.0)
