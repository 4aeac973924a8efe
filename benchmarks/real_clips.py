"""The clips that benchmarks explain: real ones, where SELREL_DATA names their folder; the project holds none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import selrel_zennit as sr
from selrel_deploy.parity.clips import synthetic_clips, video_clips

CLIPS = ("arm_wrestling.mp4", "pool_cleaning.mp4", "v_CricketShot_g04_c01_rgb.gif")


def clip_of(model: Any, name: str) -> torch.Tensor:
    """Return a real clip [1,3,T,H,W] in model units."""
    folder = os.environ.get("SELREL_DATA")
    if not folder:
        raise SystemExit("set SELREL_DATA to the folder of the real clips")
    clip: torch.Tensor = model.spec.clip(sr.read_frames(Path(folder) / name, count=model.spec.span))
    return clip


def certificate_clips(artifact: Any, spec: sr.ClipSpec, count: int = 3) -> tuple[npt.NDArray[Any], list[str]]:
    """Return the clips [N,3,T,H,W] to certify an artifact on, and their names; synthetic ones without SELREL_DATA."""
    folder = os.environ.get("SELREL_DATA")
    if folder:
        clips, names = video_clips(artifact, spec, [str(Path(folder) / name) for name in CLIPS])
    else:
        clips, names = synthetic_clips(artifact, spec)
    return np.asarray(clips)[:count], [Path(name).name for name in names[:count]]


def golden_clip(spec: sr.ClipSpec) -> torch.Tensor:
    """Return a clip of noise: an export wants one, and the certificate that follows does not rest on it."""
    low, high = (torch.from_numpy(bound) for bound in spec.bounds())
    return low + (high - low) * torch.rand(1, *spec.shape, generator=torch.Generator().manual_seed(0))
