"""What is measured on one clip: scores of each method's map and of what selections keep, and the network's answers."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from zennit.attribution import Attributor

from .. import metrics
from ..attribution import build_method, one_hot
from ..attribution.methods.motion import MotionLRP
from ..clips.cutting import freeze
from ..clips.spec import ClipSpec, FloatArray, Frames
from ..comparison import mask_iou
from ..errors import InputError
from ..metrics.planted import POSITIVE
from ..network.output import logits_of
from ..pipeline import splitter_of
from ..selection.selections import MotionSelection
from ..synthetic import SyntheticClip
from ..text import key_values
from .dataset import Box, LabelledVideo
from .flow import optical_flow
from .settings import Settings

Row = dict[str, Any]

ANSWERS = "answers"
RANDOM = "random"


class Measures:
    """A network and its methods, ready to measure clip after clip."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.model, self.settings = model, settings
        spec = model.spec
        assert isinstance(spec, ClipSpec)
        self.spec = spec
        self.selections = {f"{level:g}σ": MotionSelection(n_sigma=level) for level in settings.levels}
        self.attributors: dict[str, Attributor] = {
            name: built(name, model) for name in settings.methods if name != RANDOM
        }
        self.splitter: MotionLRP | None = None
        self.unsplit = ""
        if settings.audit:
            try:
                self.splitter = splitter_of(model, "middle")
            except InputError as error:
                self.unsplit = str(error)

    def starts(self, frames: int) -> list[int]:
        """Return where the clips of a video of so many frames begin: spread evenly over it."""
        last = max(frames - self.spec.span, 0)
        count = min(self.settings.clips, last + 1)
        return [last // 2] if count == 1 else np.linspace(0, last, count).astype(int).tolist()

    def rows(
        self, video: LabelledVideo, index: int, frames: Frames, start: int, missing: Sequence[str]
    ) -> Iterator[Row]:
        """Yield the rows of one clip that are missing: one for each method, one for a pair of two, the answers.

        ``index`` is the video's class. What is explained is the network's top class.
        """
        pixels = self.spec.pixels(frames, start)
        clip = torch.from_numpy(self.spec.from_pixels(pixels[None]))
        with torch.inference_mode():
            began = time.perf_counter()
            logits = logits_of(self.model, clip)
            forward = time.perf_counter() - began
        top = int(logits[0].argmax())
        about = {"start": start, "class": index, "predicted": top, "right": float(top == index)}
        if ANSWERS in missing:
            yield {**about, "method": ANSWERS, **self._answers(video, index, frames, start, pixels, logits)}
        wanted = [name for name in self.settings.methods if name in missing]
        pairs = [pair for pair in pairs_of(self.settings.methods) if pair_name(pair) in missing]
        needed = [name for name in self.settings.methods if name in wanted or any(name in pair for pair in pairs)]
        if not needed:
            return
        truth = video.made() if video.made is not None and self.settings.control is None else None
        if truth is not None and truth.causal_mask.shape != pixels.shape[:3]:
            truth = None
        flows = {name: optical_flow(pixels, name) for name in self.settings.flows}
        flows |= {} if truth is None else {"exact": truth.flow}
        positive = {}
        for name in needed:
            relevance, seconds = self._relevance(name, clip, pixels, top)
            positive[name] = (relevance >= POSITIVE * relevance.max()) & (relevance > 0)
            if name in wanted:
                scores = self._scores(relevance, flows, truth, video.box, frames.shape[1:3])
                yield {**about, "method": name, "forward ms": 1e3 * forward, "explanation ms": 1e3 * seconds, **scores}
        for pair in pairs:
            first, second = (positive[name][None] for name in pair)
            yield {**about, "method": pair_name(pair), "agreement": float(mask_iou(first, second)[0])}

    def _relevance(self, name: str, clip: torch.Tensor, pixels: Frames, top: int) -> tuple[FloatArray, float]:
        """Return the relevance of the top class, float32 [T,H,W], and the seconds it took."""
        began = time.perf_counter()
        if name == RANDOM:
            digest = hashlib.sha256(pixels.tobytes()).digest()
            noise = np.random.default_rng(int.from_bytes(digest[:8], "little") + self.settings.seed)
            return noise.random(pixels.shape[:3], dtype=np.float32), time.perf_counter() - began
        _, attribution = self.attributors[name](clip, lambda logits: one_hot(top, logits.shape[1]).to(logits))
        relevance = attribution.float().sum(1)[0].cpu().numpy()
        if not np.isfinite(relevance).all():
            raise InputError(f"{name}: the relevance holds NaN or infinity")
        return relevance, time.perf_counter() - began

    def _scores(
        self,
        relevance: FloatArray,
        flows: Mapping[str, FloatArray],
        truth: SyntheticClip | None,
        box: Box | None,
        size: Sequence[int],
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        inside = None if box is None else box_mask(box, size, self.spec)
        maps = {"": relevance}
        for name, selection in self.selections.items():
            began = time.perf_counter()
            kept, mask = selection(torch.from_numpy(relevance)[None])
            found[f"selection ms {name}"] = 1e3 * (time.perf_counter() - began)
            found[f"area {name}"] = float(metrics.kept_area(relevance, mask[0].numpy()))
            found[f"mass {name}"] = float(metrics.mass_inside(relevance, mask[0].numpy()))
            maps[f" {name}"] = kept[0].numpy()
        for suffix, one in maps.items():
            for flow, field in flows.items():
                precision = metrics.flow_precision(one, field)
                found[f"precision {flow}{suffix}"] = float(precision.precision)
                found[f"base rate {flow}"] = float(precision.base_rate)
                found[f"lift {flow}{suffix}"] = float(precision.lift)
            if truth is not None:
                scores = metrics.planted_scores(one, truth.causal_mask, truth.distractor_mask, truth.flow)
                found |= {f"{key}{suffix}": float(value) for key, value in scores.items()}
            if inside is not None:
                found[f"in box{suffix}"] = float(metrics.mass_inside(one, inside))
        if inside is not None:
            found["box area"] = float(inside.mean())
        return found

    def _answers(
        self, video: LabelledVideo, index: int, frames: Frames, start: int, pixels: Frames, logits: torch.Tensor
    ) -> dict[str, float]:
        """Return what the network says of each frame alone, of the clip shuffled, reversed, with its box covered."""
        random = np.random.default_rng((self.settings.seed, start, len(frames)))
        changed = {
            **{f"frame {at}": np.repeat(frame[None], len(pixels), axis=0) for at, frame in enumerate(pixels)},
            "frozen": freeze(pixels),
            "shuffled": pixels[random.permutation(len(pixels))],
            "reversed": pixels[::-1],
        }
        if video.box is not None:
            changed["covered"] = self.spec.pixels(covered(frames, video.box), start)
            for number, other in enumerate(other_boxes(video.box, frames.shape[1:3], self.settings.boxes, random)):
                changed[f"other {number}"] = self.spec.pixels(covered(frames, other), start)
        names = list(changed)
        answers = []
        for first in range(0, len(names), 8):
            batch = self.spec.from_pixels(np.stack([changed[name] for name in names[first : first + 8]]))
            with torch.inference_mode():
                answers.append(logits_of(self.model, torch.from_numpy(batch)))
        with torch.inference_mode():
            answers.append(logits_of(self.model, torch.zeros(1, *self.spec.shape)))
        found = torch.cat(answers).double()
        top = int(logits[0].argmax())
        margins = dict(zip([*names, "blank"], _margin(found, top), strict=True))
        right = dict(zip(names, (found.argmax(1) == index).tolist(), strict=False))
        margin = _margin(logits.double(), top)[0]
        frames_alone = [margins[name] for name in names if name.startswith("frame ")]
        row = {
            "margin": margin,
            "motion": margin - float(np.mean(frames_alone)),
            "still": float(np.mean(frames_alone)) - margins["blank"],
            "blank": margins["blank"],
            "least frozen": min(frames_alone),
            "greatest frozen": max(frames_alone),
        }
        for name in ("frozen", "shuffled", "reversed"):
            row |= {f"margin {name}": margins[name], f"right {name}": float(right[name])}
        if video.box is None:
            return row
        others = [margin - margins[name] for name in names if name.startswith("other ")]
        row |= {"drop covered": margin - margins["covered"], "right covered": float(right["covered"])}
        if others:
            row["drop other boxes"] = float(np.mean(others))
            row["more than other boxes"] = float(np.mean([row["drop covered"] > other for other in others]))
        if self.splitter is not None:
            clip = torch.from_numpy(self.spec.from_pixels(pixels[None]))
            _, part = self.splitter(clip, one_hot(top, logits.shape[1]).to(logits))
            assert self.splitter.static_part is not None
            inside = box_mask(video.box, frames.shape[1:3], self.spec)
            for key, value in (("motion part in box", part), ("static part in box", self.splitter.static_part)):
                row[key] = float(metrics.mass_inside(value.float().sum(1)[0].cpu().numpy(), inside))
        return row


def built(text: str, model: nn.Module) -> Attributor:
    """Return a method by what settings call it: a name, or name:key=value;key=value. Raises InputError as they do."""
    name, _, given = text[: text.find("=")].rpartition(":") if "=" in text else (text, "", "")
    options = key_values(text[len(name) + 1 :].split(";"), f"{name}:") if given else {}
    return build_method(name, model, **options)


def pairs_of(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of methods whose agreement is measured."""
    return list(itertools.combinations(methods, 2))


def pair_name(pair: tuple[str, str]) -> str:
    """Return what a row calls a pair."""
    return " / ".join(pair)


def box_mask(box: Box, size: Sequence[int], spec: ClipSpec) -> npt.NDArray[np.bool_]:
    """Return which voxels of a clip lie in a box in pixels of the file, bool [T,crop,crop]; ``size`` is (H, W)."""
    drawn = np.zeros((2, *size, 3), np.uint8)
    left, top, right, bottom = (round(value) for value in box)
    drawn[:, top:bottom, left:right] = 255
    seen = spec.pixels(drawn)[0, ..., 0] > 127
    return np.broadcast_to(seen, (spec.frames, *seen.shape)).copy()


def covered(frames: Frames, box: Box) -> Frames:
    """Return frames [N,H,W,3] with a box filled by the mean colour of a rim around it, frame by frame."""
    left, top, right, bottom = (round(value) for value in box)
    made = frames.copy()
    rim = max(2, round(0.1 * max(right - left, bottom - top)))
    around = np.zeros(frames.shape[1:3], bool)
    around[max(top - rim, 0) : bottom + rim, max(left - rim, 0) : right + rim] = True
    around[top:bottom, left:right] = False
    colours = frames[:, around].mean(1) if around.any() else frames.mean((1, 2))
    made[:, top:bottom, left:right] = np.rint(colours)[:, None, None].astype(np.uint8)
    return made


def other_boxes(box: Box, size: Sequence[int], count: int, random: np.random.Generator) -> list[Box]:
    """Return boxes of a box's size at random places that overlap it by at most a tenth; fewer where there are none."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    found: list[Box] = []
    for _ in range(20 * count):
        if len(found) == count:
            break
        x, y = random.random() * (size[1] - width), random.random() * (size[0] - height)
        common = max(0.0, width - abs(x - left)) * max(0.0, height - abs(y - top))
        if common <= 0.1 * width * height:
            found.append((x, y, x + width, y + height))
    return found


def _margin(logits: torch.Tensor, top: int) -> list[float]:
    """Return the margins of a class over the mean of the others."""
    others = (logits.sum(1) - logits[:, top]) / (logits.shape[1] - 1)
    margins: list[float] = (logits[:, top] - others).tolist()
    return margins
