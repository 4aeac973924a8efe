"""explain(): frames or a clip in, an Explanation out. The only file that joins all stages."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from zennit.attribution import Attributor

from .attribution import build_method, one_hot, resolve_target
from .attribution.faults import named_faults
from .attribution.foreign import Method, as_attributor
from .attribution.methods.motion import MotionLRP
from .attribution.target import Target
from .camera_motion import doubtful_steps
from .clips.cutting import CutClip
from .clips.spec import ClipSpec, Frames
from .errors import InputError
from .explanation import ClipExplanations, Explanation, FloatArray, MotionShare
from .loop import Explained, explain_clips
from .motion_split import MotionSplit
from .network.kinds import refuse_programs
from .network.output import checked_logits, logits_of
from .progress import Progress
from .selection.regions import RegionSelection
from .selection.selections import CalibratedSelection, MotionSelection, Selection

Seconds = dict[str, float]


def explain(
    model: nn.Module,
    clip: torch.Tensor,
    method: Method = "dtd",
    target: Target = "top1",
    *,
    selection: Selection | None = None,
    seconds: Seconds | None = None,
    strict: bool = True,
    motion: str | None = None,
    **options: Any,
) -> Explanation:
    """Explain a batch of clips: logits, relevance and motion relevance.

    ``clip`` is [B,3,T,H,W] in model units (``model.spec.clip(frames)``). ``method`` is a name of ``METHODS``, built
    with ``options``, an attributor of ``model``, Zennit's own too, or a Zennit composite. ``target`` is "top1", an
    index, a class name, or one index or name per clip; the initial relevance is 1 for it. ``selection`` is n·σ with
    the default settings where it is not given, or one of a ``Calibration`` of this model and method.
    ``motion``, one of the references (frames, middle, median, camera), asks for ``Explanation.split`` as well: how much
    of the class's margin over the others is motion, how much is in a still picture, and where (see motion_lrp).
    ``seconds``, a dict, is filled with the time of ``forward_backward`` and ``select``. With ``strict=False``
    operations that no rule of the method sees are explained all the same, and listed in ``Explanation.unseen``.

    Raises InputError for a clip or target that does not fit the model, an unknown method, a selection calibrated for
    another model or method, and a network whose logits or relevance are not finite.
    """
    refuse_programs(model)
    clip = _checked(clip, model)
    attributor = as_attributor(method, model, options, clip, strict=strict)
    selection = _fitting(selection, attributor)
    splitter = None if motion is None else splitter_of(model, motion, strict)
    found = _explain(model, clip, attributor, target, selection, {} if seconds is None else seconds, splitter)
    spec = getattr(model, "spec", None)
    return replace(found, frames=spec.to_pixels(clip)) if isinstance(spec, ClipSpec) else found


def splitter_of(model: nn.Module, reference: str, strict: bool = True) -> MotionLRP:
    """Return what takes the margin apart; raises InputError for a network that its rules do not suit."""
    splitter = build_method("motion_lrp", model, reference=reference, strict=strict)
    assert isinstance(splitter, MotionLRP)
    splitter.static = True
    return splitter


def spec_of(model: nn.Module) -> ClipSpec:
    """Return what clips a network takes. Raises InputError where it does not say."""
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ClipSpec):
        raise InputError(
            "the network does not say what clips it takes: set model.spec = ClipSpec(…), or use load_model",
            command="the network does not say what clips it takes: give --clip-spec FILE",
        )
    return spec


def device_of(model: nn.Module) -> torch.device:
    """Return where the network's parameters lie; the CPU for one without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _fitting(selection: Selection | None, attributor: Attributor) -> Selection:
    if isinstance(selection, CalibratedSelection | RegionSelection):
        selection.check(attributor)
    return selection or MotionSelection()


def _explain(
    model: nn.Module,
    clip: torch.Tensor,
    attributor: Attributor,
    target: Target,
    selection: Selection,
    timings: Seconds,
    splitter: MotionLRP | None = None,
) -> Explanation:
    clip = _checked(clip, model)
    class_names = getattr(model, "class_names", None)
    chosen: list[torch.Tensor] = []

    def initial_relevance(logits: torch.Tensor) -> torch.Tensor:
        checked_logits(logits, len(clip))
        if not torch.isfinite(logits).all():
            raise InputError("the network's logits hold NaN or infinity: check its weights and the clip's scaling")
        if class_names is not None and len(class_names) != logits.shape[1]:
            raise InputError(f"{len(class_names)} class names for a network of {logits.shape[1]} classes")
        chosen.append(resolve_target(target, logits, class_names))
        return one_hot(chosen[-1], logits.shape[1]).to(logits)

    with _timed(timings, "forward_backward"):
        logits, relevance = attributor(clip, initial_relevance)
    if not chosen:
        raise InputError(
            f"{type(attributor).__name__} did not ask for an initial relevance: call attr_output_fn(logits)"
        )
    summed = relevance.float().sum(1)
    if not torch.isfinite(summed).all():
        raise InputError("the relevance holds NaN or infinity: the method does not suit this network")
    with _timed(timings, "select"):
        motion_relevance, mask = selection(summed)
    split = None
    if splitter is not None:
        with _timed(timings, "split"):
            split = _split(splitter, clip, one_hot(chosen[-1], logits.shape[1]).to(logits))
    return Explanation(
        logits=logits.float().cpu().numpy(),
        target=chosen[-1].cpu().numpy(),
        relevance=summed.cpu().numpy(),
        motion_relevance=motion_relevance.cpu().numpy(),
        mask=mask.cpu().numpy(),
        unseen=tuple(str(one) for one in getattr(attributor, "unseen", ())),
        split=split,
    )


def _split(splitter: MotionLRP, clip: torch.Tensor, initial: torch.Tensor) -> MotionSplit:
    _, part = splitter(clip, initial)

    def array(value: torch.Tensor | None) -> FloatArray:
        assert value is not None
        return value.detach().float().cpu().numpy()

    return MotionSplit(
        array(splitter.margin),
        array(splitter.frozen_margins),
        array(splitter.blank_margin),
        array(part.sum(1)),
        array(splitter.static_part.sum(1)),  # type: ignore[union-attr]
        str(splitter.info["options"]["reference"]),
    )


class ModelExplainer:
    """A network and a method of attribution, as ``explain_clips`` takes them: an Explainer.

    ``method``, ``options``, ``selection`` and ``motion`` are those of ``explain``. Where the network does not let its
    margin be taken apart, a note says why; of methods that know their completeness error (integrated gradients)
    another says it. Raises InputError as ``explain`` does, and for a network that does not say what clips it takes.
    """

    batch = 1
    forward_alone = True

    def __init__(
        self,
        model: nn.Module,
        method: Method = "dtd",
        *,
        selection: Selection | None = None,
        motion: str | None = None,
        **options: Any,
    ) -> None:
        self.model, self.motion = model, motion
        self.attributor = as_attributor(method, model, options)
        self.spec = spec_of(model)
        self.selection = _fitting(selection, self.attributor)
        self.device = device_of(model)

    @property
    def info(self) -> dict[str, Any]:
        """What the attributor is, and the completeness error of each clip where there is one."""
        errors = {"completeness_error": list(self._errors)} if self._errors else {}
        return {**getattr(self.attributor, "info", {}), **errors}

    @property
    def notes(self) -> list[str]:
        """Why there is no motion part or a doubtful one, how far off a sum is, and what no rule saw."""
        notes = list(self._notes)
        doubtful, steps = self._camera.tolist()
        if doubtful:
            notes.append(
                f"the camera's motion is doubtful at {doubtful} of {steps} steps (it went far, or much moves by "
                "itself): the motion part may hold camera motion"
            )
        if self._errors:
            notes.append(f"the attributions sum to the change from the baseline to within {max(self._errors):.2%}")
        return [*notes, *(f"no rule sees {one}" for one in getattr(self.attributor, "unseen", ()))]

    def __enter__(self) -> ModelExplainer:
        self._held = ExitStack()
        self._begun = False
        self._splitter: MotionLRP | None = None
        self._errors: list[float] = []
        self._camera = np.zeros(2, np.int64)
        self._notes: list[str] = []
        return self

    def __exit__(self, *raised: Any) -> None:
        self._held.close()

    def logits(self, clips: Sequence[CutClip]) -> FloatArray:
        """Return what the network itself says of clips, [B,K]."""
        given = self._clip(clips)
        with torch.inference_mode(), named_faults(self.model, given):
            return logits_of(self.model, given).cpu().numpy()

    def explain(self, clips: Sequence[CutClip], target: Target) -> list[Explained]:
        """Explain one clip."""
        clip, seconds = self._clip(clips), Seconds()
        self._begin(clip)
        explanation = _explain(self.model, clip, self.attributor, target, self.selection, seconds, self._splitter)
        if self._splitter is not None and self.motion == "camera":
            self._camera += np.array((doubtful_steps(clip), len(clip) * (clip.shape[2] - 1)))
        error = getattr(self.attributor, "completeness_error", None)
        if error is not None:
            self._errors.append(float(error.max()))
        return [Explained(explanation, seconds)]

    def shares(self, clips: Sequence[CutClip], targets: list[int]) -> list[MotionShare]:
        """Return what the selection keeps of one clip."""
        found = _explain(self.model, self._clip(clips), self.attributor, targets, self.selection, {})
        return [found.motion_share()]

    def _begin(self, clip: torch.Tensor) -> None:
        """Put rules in place, and see on the first clip whether the margin can be taken apart."""
        if self._begun:
            return
        self._begun = True
        self._held.enter_context(self.attributor)
        if self.motion is None:
            return
        try:
            with ExitStack() as held:
                strict = bool(getattr(self.attributor, "strict", True))
                splitter = held.enter_context(splitter_of(self.model, self.motion, strict))
                splitter.check(clip)
                self._held.push(held.pop_all())
            self._splitter = splitter
        except InputError as error:
            self._notes.append(f"no motion part: {error}")

    def _clip(self, clips: Sequence[CutClip]) -> torch.Tensor:
        pixels = np.stack([clip.pixels for clip in clips])
        return torch.from_numpy(self.spec.from_pixels(pixels)).to(self.device)


def explain_video(
    model: nn.Module,
    source: str | Path | Frames,
    method: Method = "dtd",
    target: Target = "top1",
    *,
    selection: Selection | None = None,
    start: int = 0,
    all_clips: bool = False,
    frozen: bool = True,
    motion: str | None = None,
    progress: Progress = False,
    **options: Any,
) -> ClipExplanations:
    """Explain one clip of a video, or every clip, and hold them all: ``explain_clips`` by a network, as one batch.

    ``source`` is a path, or frames uint8 [N,H,W,3]. For the other arguments, and the errors, see ``explain_clips`` and
    ``explain``.
    """
    explainer = ModelExplainer(model, method, selection=selection, motion=motion, **options)
    return explain_clips(
        source, explainer, target, start=start, all_clips=all_clips, frozen=frozen, progress=progress
    ).collected()


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
    if len(clip) == 0:
        raise InputError("a batch of no clips: give at least one")
    weights = next(model.parameters(), None)
    if weights is not None and clip.dtype != weights.dtype:
        raise InputError(f"the clip is {clip.dtype}, the network's weights are {weights.dtype}: convert one of them")
    if not torch.isfinite(clip).all():
        raise InputError("the clip holds NaN or infinity")
    return clip


@contextmanager
def _timed(seconds: Seconds, stage: str) -> Iterator[None]:
    since = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds[stage] = time.perf_counter() - since
