"""Train the embedded demo model on synthetic clips, and record how well it does.

Writes the weights (batch norms folded) and ``results/demo_training.json``. About a quarter of an hour on two CPU cores:

    python benchmarks/train_demo.py

Memory handed back to the system after every step costs much of the time; glibc keeps it with
``MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184`` in the environment.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from machine import machine
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from selrel_zennit import ClipSpec
from selrel_zennit.files import atomic_path, sha256_file
from selrel_zennit.models.c3d import C3D
from selrel_zennit.models.demo import HIDDEN, WIDTH
from selrel_zennit.synthetic import CLASSES, GENERATOR_VERSION, SyntheticSpec, frozen, make_clip

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE.parent / "selrel_zennit" / "models" / "demo.safetensors"
RESULTS = HERE / "results" / "demo_training.json"

# Training ends early once this share of the validation clips is right at the clip's own size.
ENOUGH = 0.985
# The network sees (pixels - mean) / SCALE while it learns; SCALE is folded into the first convolution afterwards.
SCALE = 64.0
SEEDS = {"train": 1001, "validation": 1002, "uncorrelated": 1003, "opposed": 1004, "frames": 1005, "frames test": 1006}


@dataclass(frozen=True)
class Stage:
    """Some training at one frame size, with or without distractors.

    At the clip's own size all layers learn; at a smaller one the convolutions alone do, under the side head.
    """

    side: int
    distractor: bool
    clips: int
    first_clip: int
    batch: int
    learning_rate: float

    @property
    def whole(self) -> bool:
        """Whether all layers learn."""
        return self.side == ClipSpec().crop


STAGES = (
    Stage(side=64, distractor=False, clips=8_000, first_clip=0, batch=32, learning_rate=3e-3),
    Stage(side=64, distractor=True, clips=24_000, first_clip=8_000, batch=32, learning_rate=3e-3),
    Stage(side=112, distractor=True, clips=24_000, first_clip=32_000, batch=16, learning_rate=2e-3),
)


class Clips(Dataset[tuple[torch.Tensor, int]]):
    """Frames [T,H,W,3] and classes of successive clips of one seed, each made when asked for."""

    def __init__(self, spec: SyntheticSpec, seed: int, first: int, count: int, vary: bool) -> None:
        self.spec, self.seed, self.first, self.count, self.vary = spec, seed, first, count, vary

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        index = self.first + number
        spec = self.spec
        if self.vary:  # by block of eight, so that every setting sees every class equally often
            block = index // len(CLASSES)
            spec = replace(spec, shake=block % 3, distractor=spec.distractor and block % 8 != 0)
        clip = make_clip(spec, self.seed, index)
        return torch.from_numpy(clip.frames), clip.class_index


def loader(data: Dataset[Any], batch: int, workers: int) -> DataLoader[Any]:
    return DataLoader(data, batch_size=batch, num_workers=workers, prefetch_factor=4)


def to_input(frames: torch.Tensor) -> torch.Tensor:
    """Turn frames uint8 [B,T,H,W,3] into the network's input in training, [B,3,T,H,W] with channels last in memory."""
    spec = ClipSpec()
    return ((frames.float() - torch.tensor(spec.mean, device=frames.device)) / SCALE).permute(0, 4, 1, 2, 3)


class Learner(nn.Module):
    """The demo network with batch norms and a side head, for training.

    Each ReLU comes after its pool: the same function, on fewer voxels. The side head is a linear layer on the greatest
    activation of the last convolution over space. It learns the classes long before the linear layers do, at any frame
    size, and does not ship.
    """

    def __init__(self, width: int = WIDTH, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        network = C3D(len(CLASSES), width=width, hidden=hidden, batch_norm=True, dropout=0.0)
        network.reset_parameters(seed=0)
        names = list(network._modules)
        for first, second in itertools.pairwise(names):
            if first.startswith("relu") and second.startswith("pool"):
                at = names.index(first)
                names[at], names[at + 1] = second, first
        self.network = nn.Sequential(OrderedDict((name, network.get_submodule(name)) for name in names))
        self.side_head = nn.Linear(8 * width * 2, len(CLASSES))
        # Half precision for the first four blocks alone: for the fifth's few voxels the bfloat16 gradient of the
        # weights came out infinite in one step of ten (torch 2.15, CPU).
        self.fifth, self.top = names.index("conv5a"), names.index("pool5")

    def forward(self, clips: torch.Tensor, whole: bool) -> list[torch.Tensor]:
        """[B,3,T,H,W] → the side head's logits, and with ``whole`` the network's before them."""
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=self.training):
            features = self.network[: self.fifth](clips)
        features = self.network[self.fifth : self.top](features.float())
        logits = [self.side_head(features.relu().amax(dim=(3, 4)).flatten(1))]
        return [self.network[self.top :](features), *logits] if whole else logits


@torch.no_grad()
def folded(learner: Learner) -> C3D:
    """Return the network that ships: no batch norms, input in units of ClipSpec()."""
    model = learner.network
    plain = C3D(len(CLASSES), width=learner.width, hidden=learner.hidden, class_names=CLASSES)
    state = {key: value.cpu() for key, value in model.state_dict().items() if not key.startswith("bn")}
    for name, norm in model.named_children():
        if isinstance(norm, nn.BatchNorm3d):
            conv = name.replace("bn", "conv")
            assert norm.running_mean is not None
            assert norm.running_var is not None
            factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).cpu()
            state[f"{conv}.bias"] = (state[f"{conv}.bias"] - norm.running_mean.cpu()) * factor + norm.bias.cpu()
            state[f"{conv}.weight"] = state[f"{conv}.weight"] * factor[:, None, None, None, None]
    state["conv1.weight"] = state["conv1.weight"] / SCALE
    plain.load_state_dict(state)
    return plain.eval()


def train(
    stages: tuple[Stage, ...], workers: int, weights: Path, learner: Learner | None = None, device: str = "cpu"
) -> tuple[C3D, list[dict[str, float]], float]:
    """Run the stages, saving the weights at each entry of the log; return network, log and minutes."""
    began = time.perf_counter()
    history: list[dict[str, float]] = []
    learner = (learner or Learner()).to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    for stage in stages:
        clips = SyntheticSpec(height=stage.side, width=stage.side, distractor=stage.distractor)
        batches = loader(Clips(clips, SEEDS["train"], stage.first_clip, stage.clips, vary=True), stage.batch, workers)
        optimizer = torch.optim.AdamW(learner.parameters(), lr=stage.learning_rate, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.learning_rate, total_steps=len(batches))
        every = max(len(batches) // 8, 1)
        losses: list[float] = []
        hits: list[float] = []
        for step, (frames, labels) in enumerate(batches, start=1):
            learner.train()
            labels = labels.to(device)
            outputs = learner(to_input(frames.to(device)), stage.whole)
            loss = torch.stack([functional.cross_entropy(logits, labels) for logits in outputs]).sum()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(functional.cross_entropy(outputs[0].detach(), labels).item())
            hits.append((outputs[0].argmax(1) == labels).float().mean().item())
            if step % every == 0 or step == len(batches):
                row = {
                    "side": stage.side,
                    "clips": step * stage.batch,
                    "loss": round(float(np.mean(losses)), 4),
                    "accuracy": round(float(np.mean(hits)), 4),
                    "validation": round(validate(learner, stage, clips, workers), 4),
                    "minutes": round((time.perf_counter() - began) / 60, 2),
                }
                history.append(row)
                print(json.dumps(row), flush=True)
                losses, hits = [], []
                if stage.whole:
                    save(folded(learner), weights)
                    if row["validation"] >= ENOUGH:
                        break
    return folded(learner), history, (time.perf_counter() - began) / 60


@torch.no_grad()
def validate(learner: Learner, stage: Stage, spec: SyntheticSpec, workers: int, count: int = 240) -> float:
    learner.eval()
    correct = 0
    for frames, labels in loader(Clips(spec, SEEDS["validation"], 0, count, vary=True), 16, workers):
        device = next(learner.parameters()).device
        correct += int((learner(to_input(frames.to(device)), stage.whole)[0].argmax(1).cpu() == labels).sum())
    return correct / count


def save(model: C3D, path: Path) -> None:
    with atomic_path(path) as temporary:
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, temporary)


def rate(hits: Sequence[bool]) -> dict[str, float]:
    """Return the share of hits with its 95 % interval (Wilson)."""
    count = len(hits)
    z, share = 1.959964, sum(hits) / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return {"accuracy": round(share, 4), "low": round(low, 4), "high": round(high, 4), "n": count}


@torch.no_grad()
def predict(model: C3D, frames: np.ndarray) -> list[int]:
    """Classes that the network gives to clips uint8 [B,T,H,W,3]."""
    clips = torch.from_numpy(model.spec.from_pixels(frames)).to(next(model.parameters()).device)
    return [int(label) for label in model(clips).argmax(1)]


def score(model: C3D, spec: SyntheticSpec, seed: int, count: int, counterfactuals: int) -> dict[str, Any]:
    """Accuracy of the network that ships, in float32: on whole clips, and on some of them frozen and reversed."""
    # Eight at a time: one class each. A batch of one takes PyTorch's slow convolution on one thread.
    batch = len(CLASSES)
    found: dict[str, list[int]] = {"whole": [], "frozen": [], "reversed": []}
    labels: list[int] = []
    for first in range(0, count, batch):
        clips = [make_clip(spec, seed, index) for index in range(first, first + batch)]
        labels += [clip.class_index for clip in clips]
        found["whole"] += predict(model, np.stack([clip.frames for clip in clips]))
        if first < counterfactuals:
            found["frozen"] += predict(model, np.stack([frozen(clip.frames, 0) for clip in clips]))
            found["reversed"] += predict(model, np.stack([clip.frames[::-1] for clip in clips]))
    own = {name: [a == b for a, b in zip(labels, values, strict=False)] for name, values in found.items()}
    opposite = [a ^ 1 == b for a, b in zip(labels, found["reversed"], strict=False)]
    recall = {
        name: round(float(np.mean([hit for hit, label in zip(own["whole"], labels, strict=True) if label == k])), 4)
        for k, name in enumerate(CLASSES)
    }
    return {
        "whole": rate(own["whole"]),
        "whole, by class": recall,
        "frozen at frame 0": rate(own["frozen"]),
        "reversed, own class": rate(own["reversed"]),
        "reversed, opposite class": rate(opposite),
    }


class SingleFrames(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """Some frames of each clip with their indices, [k,H,W,3] and [k]."""

    def __init__(self, seed: int, count: int, per_clip: int) -> None:
        self.seed, self.count, self.per_clip = seed, count, per_clip

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        clip = make_clip(SyntheticSpec(), self.seed, index)
        order = np.random.default_rng((self.seed, index)).permutation(len(clip.frames))[: self.per_clip]
        return torch.from_numpy(clip.frames[order]), torch.from_numpy(order), clip.class_index


class FrameNet(nn.Module):
    """A 2D network that sees one frame and knows which one it is."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (16, 32, 64, 128):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels = width
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.index = nn.Embedding(ClipSpec().frames, 64)
        self.head = nn.Sequential(nn.Linear(128 * 49 + 64, 128), nn.ReLU(), nn.Linear(128, len(CLASSES)))

    def forward(self, frames: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Frames uint8 [N,H,W,3] and their indices [N] → logits [N,K]."""
        pixels = (frames.permute(0, 3, 1, 2).float() - 110.0) / SCALE
        logits: torch.Tensor = self.head(torch.cat([self.features(pixels), self.index(index)], dim=1))
        return logits


def single_frame(train_clips: int, test_clips: int, workers: int) -> dict[str, Any]:
    """Train a classifier of single frames on the same task: it should find nothing."""
    torch.manual_seed(0)
    model, per_clip = FrameNet().to(memory_format=torch.channels_last), 4
    batches = loader(SingleFrames(SEEDS["frames"], train_clips, per_clip), 16, workers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    hits: list[float] = []
    for frames, index, labels in batches:
        labels = labels.repeat_interleave(per_clip)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(frames.flatten(0, 1), index.flatten()).float()
        torch.autograd.backward(functional.cross_entropy(logits, labels))
        optimizer.step()
        optimizer.zero_grad()
        hits.append((logits.argmax(1) == labels).float().mean().item())
    model.eval()
    found: list[bool] = []
    with torch.no_grad():
        for frames, index, labels in loader(SingleFrames(SEEDS["frames test"], test_clips, 1), 64, workers):
            found += (model(frames.flatten(0, 1), index.flatten()).argmax(1) == labels).tolist()
    last = round(float(np.mean(hits[-len(hits) // 4 :])), 4)
    return {
        "chance": 1 / len(CLASSES),
        **rate(found),
        "train_clips": train_clips,
        "frames_per_clip": per_clip,
        "accuracy in the last quarter of training": last,
    }


def settings(stages: tuple[Stage, ...]) -> dict[str, Any]:
    """What the record says of the run before its outcome."""
    return {
        "what": "training of the embedded demo model (selrel_zennit/models/demo.safetensors)",
        "generator_version": GENERATOR_VERSION,
        "classes": list(CLASSES),
        "model": {"name": "C3D", "width": WIDTH, "hidden": HIDDEN, "spec": ClipSpec().to_dict()},
        "settings": {
            "stages": [asdict(stage) for stage in stages],
            "ends early at validation accuracy": ENOUGH,
            "clips": "bias 0; blocks of eight: camera shake 0, 1, 2 in turn, every eighth block without distractor",
            "optimizer": "AdamW, weight decay 1e-3, one cycle per stage, gradient norm at most 1, bfloat16 autocast",
            "test clips": "fresh seeds, camera shake 1, with distractor",
            "seeds": SEEDS,
        },
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that make clips")
    parser.add_argument("--share", type=float, default=1.0, help="share of the clips to use, for a trial run")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    # Before any clip is made: a process that is forked off while OpenCV has threads waits for them for ever.
    cv2.setNumThreads(1)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    stages = tuple(replace(stage, clips=int(stage.clips * arguments.share)) for stage in STAGES)
    model, history, minutes = train(stages, arguments.workers, arguments.weights)
    save(model, arguments.weights)

    tests, some, frame_clips, frame_tests = (int(count * arguments.share) for count in (1000, 400, 8000, 4000))
    shaken = SyntheticSpec(shake=1)
    result = {
        **settings(stages),
        "weights_sha256": sha256_file(arguments.weights),
        "minutes": round(minutes, 1),
        "log": history,
        "uncorrelated": score(model, shaken, SEEDS["uncorrelated"], tests, some),
        "opposed": score(model, replace(shaken, opposed=True), SEEDS["opposed"], tests, some),
        "single_frame": single_frame(frame_clips, frame_tests, arguments.workers),
    }
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("minutes", "uncorrelated", "opposed", "single_frame")}, indent=1))


if __name__ == "__main__":
    main()
