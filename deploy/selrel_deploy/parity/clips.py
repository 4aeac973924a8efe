"""Clips to certify on: of videos, or synthetic ones that nothing else uses. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.clips.cutting import CutClip, cut
from selrel_zennit.clips.spec import ClipSpec, Frames
from selrel_zennit.errors import InputError
from selrel_zennit.synthetic import SyntheticSpec, make_clip

from ..artifact.format import Artifact

LEAST = 3
# Of a seed that neither training, nor calibration, nor the golden cases use.
_SEED = 4000
_SMALLEST = 32


def video_clips(artifact: Artifact, spec: ClipSpec, paths: Sequence[str]) -> tuple[npt.NDArray[Any], list[str]]:
    """Return clips of videos as the artifact takes them, [N,…], and what each is called.

    The first clip of every video; of fewer videos than three, as many successive clips of each as make three. N is
    rounded up to the artifact's batch by further clips. Raises InputError where there are not so many.
    """
    batch = artifact.clip_shape[0]
    wanted = max(LEAST, len(paths))
    wanted += -wanted % batch
    each = -(-wanted // len(paths))
    notes: list[str] = []
    cut_clips = [(path, list(islice(cut(path, spec, 0, each > 1, notes), each))) for path in paths]
    # The first clips of all come first.
    found = [(path, clips[turn]) for turn in range(each) for path, clips in cut_clips if turn < len(clips)]
    if len(found) < wanted:
        raise InputError(
            f"{', '.join(paths)} give {len(found)} whole clips of {spec.span} frames, {wanted} are needed: "
            "add another video"
        )
    chosen = found[:wanted]
    names = [f"{path}, frame {clip.start}" for path, clip in chosen]
    return np.stack([_input(artifact, spec, path, clip) for path, clip in chosen]), names


def synthetic_clips(artifact: Artifact, spec: ClipSpec) -> tuple[npt.NDArray[Any], list[str]]:
    """Return three synthetic clips, or the next multiple of the batch, as the artifact takes them, and their names."""
    batch = artifact.clip_shape[0]
    count = LEAST + -LEAST % batch
    height, width = artifact.frames_shape[2:4] if artifact.frames_shape is not None else (spec.crop, spec.crop)
    size = SyntheticSpec(frames=spec.span, height=max(height, _SMALLEST), width=max(width, _SMALLEST))
    clips = []
    for index in range(count):
        frames = make_clip(size, _SEED, index).frames[:, :height, :width]
        clips.append(
            _input(artifact, spec, "a synthetic clip", CutClip(0, len(frames), frames, spec.pixels(frames), 0))
        )
    return np.stack(clips), [f"synthetic, seed {_SEED}, clip {index}" for index in range(count)]


def _input(artifact: Artifact, spec: ClipSpec, name: str, clip: CutClip) -> npt.NDArray[Any]:
    if artifact.frames_shape is None:
        return np.asarray(spec.from_pixels(clip.pixels[None])[0])
    frames: Frames = clip.frames[spec.indices(len(clip.frames))]
    if frames.shape != artifact.frames_shape[1:]:
        raise InputError(
            f"{name} has frames of {frames.shape[2]}×{frames.shape[1]} pixels, the artifact takes "
            f"{artifact.frames_shape[3]}×{artifact.frames_shape[2]}: give a video of that size"
        )
    return frames
