"""explain(): frames or a clip in, an Explanation out. The only file that joins all stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from zennit.attribution import Attributor

from .attribution import build_method, one_hot, resolve_target
from .attribution.target import Target
from .clip import ClipSpec, Frames
from .errors import InputError
from .explanation import Explanation
from .outputs import ClipExplanations
from .selection import MotionSelection, Selective
from .video import iter_frames, probe

Seconds = dict[str, float]


def explain(
    model: nn.Module,
    clip: torch.Tensor,
    method: str | Attributor = "dtd",
    target: Target = "top1",
    *,
    selection: MotionSelection | None = None,
    seconds: Seconds | None = None,
    **options: Any,
) -> Explanation:
    """Explain a batch of clips: logits, relevance and motion relevance.

    ``clip`` is [B,3,T,H,W] in model units (``model.spec.clip(frames)``). ``method`` is a name of ``METHODS``, built
    with ``options``, or an attributor of ``model``. ``target`` is "top1", an index, a class name, or one index per
    clip; the initial relevance is 1 for it. ``selection`` is n·σ with the default settings where it is not given.
    ``seconds``, a dict, is filled with the time of ``forward_backward`` and ``select``.

    Raises InputError for a clip or target that does not fit the model, an unknown method, and a network whose logits
    or relevance are not finite.
    """
    if isinstance(method, Selective):
        raise InputError("pass the inner attributor and selection=…: explain selects by itself")
    if isinstance(method, Attributor) and options:
        raise InputError(f"options ({', '.join(sorted(options))}) go with a method's name, not with a built attributor")
    attributor = method if isinstance(method, Attributor) else build_method(method, model, **options)
    selection = selection or MotionSelection()
    clip = _checked(clip, model)
    class_names = getattr(model, "class_names", None)
    timings: Seconds = {} if seconds is None else seconds
    chosen: list[torch.Tensor] = []

    def initial_relevance(logits: torch.Tensor) -> torch.Tensor:
        if logits.ndim != 2 or len(logits) != len(clip):
            raise InputError(f"the network must return logits [B,K] for [B,3,T,H,W], got {tuple(logits.shape)}")
        if not torch.isfinite(logits).all():
            raise InputError("the network's logits hold NaN or infinity: check its weights and the clip's scaling")
        if class_names is not None and len(class_names) != logits.shape[1]:
            raise InputError(f"{len(class_names)} class names for a network of {logits.shape[1]} classes")
        chosen.append(resolve_target(target, logits, class_names))
        return one_hot(chosen[-1], logits.shape[1]).to(logits)

    with _timed(timings, "forward_backward"):
        logits, relevance = attributor(clip, initial_relevance)
    summed = relevance.float().sum(1)
    if not torch.isfinite(summed).all():
        raise InputError("the relevance holds NaN or infinity: the method does not suit this network")
    with _timed(timings, "select"):
        motion_relevance, mask = selection(summed)
    return Explanation(
        logits=logits.float().cpu().numpy(),
        target=chosen[-1].cpu().numpy(),
        relevance=summed.cpu().numpy(),
        motion_relevance=motion_relevance.cpu().numpy(),
        mask=mask.cpu().numpy(),
    )


def explain_video(
    model: nn.Module,
    source: str | Path | Frames,
    method: str = "dtd",
    target: Target = "top1",
    *,
    selection: MotionSelection | None = None,
    start: int = 0,
    all_clips: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    **options: Any,
) -> ClipExplanations:
    """Explain one clip of a video, or every clip: ``source`` is a path, or frames uint8 [N,H,W,3].

    With ``all_clips`` the video is cut into successive clips from frame ``start`` on, an incomplete last one left out,
    and "top1" is the class with the highest mean logit over all of them, explained in every clip (the video is read
    twice for that). ``progress`` wraps the loop over clips.

    Raises InputError for a video that cannot be read or has fewer than 2 frames from ``start`` on; see also explain.
    """
    spec: ClipSpec = model.spec  # type: ignore[assignment]
    attributor = build_method(method, model, **options)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    notes: list[str] = []
    rate = 25.0
    if not isinstance(source, np.ndarray):
        info = probe(source)
        notes += info.notes
        rate = info.fps or rate
        if (info.height, info.width) != (spec.crop, spec.crop):
            notes.append(f"{info.width}×{info.height} pixels: {spec.describe_resize()}")

    def clips() -> Iterator[tuple[int, int, Frames, float]]:
        return _cut(source, spec, start, all_clips)

    if all_clips and target in ("top1", -1):
        with torch.inference_mode():
            total: torch.Tensor | None = None
            for _, _, pixels, _ in clips():
                logits = model(torch.from_numpy(spec.from_pixels(pixels[None])).to(device)).double()
                total = logits if total is None else total + logits
        assert total is not None
        target = int(total.argmax())

    found: list[tuple[int, Frames, Explanation, Seconds]] = []
    with attributor:
        for first, available, pixels, reading in progress(clips()):
            if available < spec.span:
                notes.append(f"{available} frames from frame {first}: loop padded to {spec.span}")
            seconds: Seconds = {"read": reading}
            clip = torch.from_numpy(spec.from_pixels(pixels[None])).to(device)
            result = explain(model, clip, attributor, target, selection=selection, seconds=seconds)
            found.append((first, pixels, result, seconds))
    return ClipExplanations(
        explanation=_joined([result for _, _, result, _ in found]),
        pixels=np.stack([pixels for _, pixels, _, _ in found]),
        starts=[first for first, _, _, _ in found],
        seconds=[seconds for _, _, _, seconds in found],
        frame_rate=rate / spec.stride,
        notes=notes,
        info=attributor.info,
    )


def _cut(
    source: str | Path | Frames, spec: ClipSpec, start: int, all_clips: bool
) -> Iterator[tuple[int, int, Frames, float]]:
    """Yield (first frame, frames available, pixels [T,H,W,3], seconds of reading and resizing) for each clip."""
    since = time.perf_counter()
    frames: Iterable[Frames] = (
        source[start:]
        if isinstance(source, np.ndarray)
        else iter_frames(source, start, None if all_clips else spec.span)
    )
    held: list[Frames] = []
    first = start
    for frame in frames:
        held.append(frame)
        if len(held) == spec.span:
            yield first, spec.span, spec.pixels(np.stack(held)), time.perf_counter() - since
            first, held = first + spec.span, []
            if not all_clips:
                return
            since = time.perf_counter()
    if first > start:
        return
    name = "the frames given" if isinstance(source, np.ndarray) else str(source)
    if len(held) < 2:
        raise InputError(f"{name}: {len(held)} frames from frame {start} on; a motion explanation needs at least 2")
    yield first, len(held), spec.pixels(np.stack(held)), time.perf_counter() - since


def _checked(clip: torch.Tensor, model: nn.Module) -> torch.Tensor:
    if not isinstance(clip, torch.Tensor) or clip.ndim != 5 or clip.shape[1] != 3 or not clip.is_floating_point():
        got = f"{clip.dtype} {tuple(clip.shape)}" if isinstance(clip, torch.Tensor) else type(clip).__name__
        raise InputError(
            f"a clip must be a float tensor [B,3,T,H,W] in model units, got {got}; see model.spec.clip(frames)"
        )
    spec = getattr(model, "spec", None)
    if isinstance(spec, ClipSpec) and tuple(clip.shape[1:]) != spec.shape:
        raise InputError(
            f"the clip is {tuple(clip.shape)}, the model takes [B,{','.join(map(str, spec.shape))}]: "
            "make it with model.spec.clip(frames), or set model.spec"
        )
    if not torch.isfinite(clip).all():
        raise InputError("the clip holds NaN or infinity")
    return clip


def _joined(results: list[Explanation]) -> Explanation:
    names = ("logits", "target", "relevance", "motion_relevance", "mask")
    return Explanation(**{name: np.concatenate([getattr(result, name) for result in results]) for name in names})


@contextmanager
def _timed(seconds: Seconds, stage: str) -> Iterator[None]:
    since = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds[stage] = time.perf_counter() - since
