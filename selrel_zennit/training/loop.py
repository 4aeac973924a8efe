"""Training: epochs, a checkpoint after each, the best and the last weights, a log, and a picture of the curves."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..clips.cutting import freeze
from ..clips.spec import ClipSpec
from ..errors import InputError
from ..evaluate.dataset import Dataset
from ..models.registry import load_model
from . import batch_norms
from .checkpoint import (
    BEST,
    CHECKPOINT,
    CURVES,
    LAST,
    LOG,
    prepare_folder,
    read_checkpoint,
    save_weights,
    write_checkpoint,
    write_log,
)
from .curves import draw_curves
from .recipes import Recipe
from .samples import Samples, measured
from .start import Model, check_logits, spec_of, starting_network

_TRAIN, _VALIDATION = ("train",), ("validation", "validate", "val", "test")
# Seconds after which the curves are drawn anew.
_REDRAW = 60.0

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class Trained:
    """What came out: where the files lie, the log's rows, and what is measured on the held-out videos.

    ``best`` and ``last`` are, for either weights, the shares of these videos that are named rightly by their middle
    clip, and with that clip frozen. The best weights are chosen on these very videos, so their share is a little too
    good; that of the last is not. ``chosen_on`` names the split.
    """

    folder: Path
    rows: list[dict[str, Any]]
    best: dict[str, float]
    last: dict[str, float]
    chosen_on: str
    minutes: float
    skipped: list[dict[str, str]]

    def __repr__(self) -> str:
        right = f"best {self.best['accuracy']:.1%} right, last {self.last['accuracy']:.1%}"
        return f"Trained({len(self.rows)} epochs in {self.minutes:.1f} min: {right}; {self.folder})"


def train(
    data: Dataset,
    out: str | Path,
    *,
    model: Model = "small3d",
    recipe: Recipe,
    spec: ClipSpec | None = None,
    initial: str | Path | None = None,
    seed: int = 0,
    validation: str | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Trained:
    """Train a network on the split ``train`` of a data set, and write it and its log to the folder ``out``.

    ``model`` is a name of MODELS, ``package.module:factory`` or a factory. ``spec`` says what clips it sees (default:
    the network's own); its mean, and with ``recipe.standardise`` its standard deviation, are replaced by the data's.
    ``initial`` is a weight file to begin with; its class layer is left out where it is for other classes.
    ``validation`` names the split that the best weights are chosen on (default: the first there is of validation,
    validate, val, test).

    Where ``out`` holds a checkpoint of the same training it goes on from there, and ends with the same weights as if it
    had never stopped. Each weight file says itself what clips and classes it is for. The best weights are those of the
    highest accuracy, the lower loss among equals.

    Raises InputError for a data set without these splits, a checkpoint of another training, weights that do not fit,
    and a loss that is no longer a number.
    """
    out = Path(out)
    learning = data.part(_named(data, _TRAIN))
    held_out = data.part(validation or _named(data, _VALIDATION))
    prepare_folder(out)
    if recipe.flip and any(video.made is not None for video in learning):
        # Mirrored, a sprite that goes to the left goes to the right: another class.
        recipe = replace(recipe, flip=False)
    torch.manual_seed(seed)
    network, initial_sha256 = starting_network(model, len(data.classes), spec, initial, seed)
    spec = spec_of(network)
    shown = Samples(learning, spec, recipe)
    without = sorted(set(range(len(data.classes))) - set(shown.labels.tolist()))
    if without:
        raise InputError(
            f"{data.name}: no video to train on of {data.classes[without[0]]!r}; name the others with --classes"
        )
    spec = measured(spec, shown, recipe.standardise)
    shown.spec = spec
    tested = Samples(held_out, spec, None)
    settings = {
        "data": data.name,
        "classes": list(data.classes),
        "videos": {"train": len(shown), "held out": len(tested), "sha256": _names_hash(shown, tested)},
        "chosen on": tested.videos[0].split,
        "model": model if isinstance(model, str) else model.__qualname__,
        "recipe": asdict(recipe),
        "spec": spec.to_dict(),
        "initial": initial_sha256,
        "seed": seed,
    }
    settings = json.loads(json.dumps(settings))
    if recipe.batch_norms and batch_norms.insert(network) and initial is not None:
        # The first batches tell how large its features are.
        clips = [clips for clips, _ in shown.batches(seed, 0)][:4]
        batch_norms.keep_function(network, torch.from_numpy(np.concatenate(clips)))
    network = network.to(device).to(memory_format=torch.channels_last_3d).requires_grad_(True)
    run = _Run(network, recipe, seed, len(data.classes), len(shown.order(seed, 0)))
    rows, best, minutes = run.resume(read_checkpoint(out / CHECKPOINT, settings))

    def log(result: dict[str, Any]) -> dict[str, Any]:
        skipped = [asdict(entry) for entry in (*shown.skipped, *tested.skipped)]
        return {"settings": settings, "skipped": skipped, **result, "epochs": rows}

    card = {"spec": spec, "classes": data.classes, "model": settings["model"]}
    title = f"{settings['model']} on {data.name}"
    began = drawn = time.perf_counter()
    for epoch in range(len(rows), run.epochs):
        if run.ended:
            break
        loss, accuracy = run.epoch(shown, epoch, progress)
        plain = batch_norms.folded(network)
        found = measure(plain, tested)
        held = {"validation loss": found["loss"], "validation accuracy": found["accuracy"]}
        spent = minutes + (time.perf_counter() - began) / 60
        rows.append(
            {"epoch": epoch + 1, "rate": run.rate, "loss": loss, "accuracy": accuracy, **held, "minutes": spent}
        )
        score = [found["accuracy"], -found["loss"]]
        if best is None or score > best:
            best = score
            save_weights(plain, out / BEST, **card)
        save_weights(plain, out / LAST, **card)
        write_log(out / LOG, log({}))
        # Last: what a checkpoint counts as done is there.
        write_checkpoint(out / CHECKPOINT, settings, run.state() | {"rows": rows, "best": best, "minutes": spent})
        if time.perf_counter() - drawn > _REDRAW:
            draw_curves(rows, out / CURVES, title)
            drawn = time.perf_counter()
    draw_curves(rows, out / CURVES, title)
    results = {}
    for name, file in (("best", BEST), ("last", LAST)):
        # From the file: what is measured is what others will load.
        loaded = load_model(model, out / file, device=device)
        found = measure(loaded, tested, frozen=True)
        results[name] = {key: found[key] for key in ("accuracy", "frozen accuracy")}
    spent = rows[-1]["minutes"]
    write_log(out / LOG, log({**results, "minutes": spent}))
    skipped = [asdict(entry) for entry in (*shown.skipped, *tested.skipped)]
    return Trained(out, rows, results["best"], results["last"], settings["chosen on"], spent, skipped)


class _Run:
    """A network, its optimiser and schedule, and where they stand."""

    def __init__(self, network: nn.Module, recipe: Recipe, seed: int, classes: int, batches: int) -> None:
        self.network, self.recipe, self.seed, self.classes, self.batches = network, recipe, seed, classes, batches
        self.epochs = recipe.epochs_of(batches)
        rate, decay = recipe.learning_rate, recipe.weight_decay
        parameters = list(network.parameters())
        self.device = parameters[0].device
        self.optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(parameters, rate, momentum=recipe.momentum, weight_decay=decay)
        else:
            self.optimizer = torch.optim.AdamW(parameters, rate, weight_decay=decay)
        self.schedule: Any
        if recipe.schedule == "plateau":
            # PyTorch's patience is the number of epochs without progress that are still allowed.
            self.schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, patience=recipe.patience - 1)
        else:
            steps = max(batches * self.epochs, 2)
            self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rate, total_steps=steps)

    @property
    def rate(self) -> float:
        """The learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def ended(self) -> bool:
        """Whether the rate has fallen three times, and nothing will be learnt any more."""
        return self.recipe.schedule == "plateau" and self.rate < self.recipe.learning_rate * 2e-3

    def epoch(self, shown: Samples, epoch: int, progress: Progress | None) -> tuple[float, float]:
        """Go through the videos once; return the mean loss and the share of right answers."""
        # Dropout's: drawn anew for each epoch, so that a training that goes on draws the same.
        torch.manual_seed(self.seed * 100_003 + epoch)
        self.network.train()
        losses, right, count = 0.0, 0, 0
        batches: Iterable[Any] = shown.batches(self.seed, epoch)
        if progress is not None:
            batches = progress(batches, f"epoch {epoch + 1}/{self.epochs}", self.batches)
        for clips, numbers in batches:
            if len(numbers) == 0:
                continue
            labels = torch.from_numpy(numbers).to(self.device)
            inputs = torch.from_numpy(clips).to(self.device, memory_format=torch.channels_last_3d)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.half):
                logits = self.network(inputs)
            check_logits(logits, self.classes)
            loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
            if not torch.isfinite(loss):
                raise InputError(
                    f"the loss is no number any more in epoch {epoch + 1}: take a lower --learning-rate "
                    f"(it is {self.rate:.3g})"
                )
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            if self.recipe.gradient is not None:
                nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.gradient)
            self.optimizer.step()
            if self.recipe.schedule == "one-cycle":
                self.schedule.step()
            losses += float(loss.detach()) * len(numbers)
            right += int((logits.argmax(1) == labels).sum())
            count += len(numbers)
        if count == 0:
            raise InputError(f"none of {len(shown)} videos can be read any more: are they still there?")
        if self.recipe.schedule == "plateau":
            self.schedule.step(losses / count)
        return losses / count, right / count

    def state(self) -> dict[str, Any]:
        """Return where it stands, for a checkpoint."""
        schedule = {key: value for key, value in self.schedule.state_dict().items() if _plain(value)}
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "schedule": schedule}

    def resume(self, kept: dict[str, Any] | None) -> tuple[list[dict[str, Any]], list[float] | None, float]:
        """Go to where a checkpoint stood; return its rows, its best score and its minutes."""
        if kept is None:
            return [], None, 0.0
        self.network.load_state_dict(kept["network"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.schedule.load_state_dict(kept["schedule"])
        return kept["rows"], kept["best"], kept["minutes"]


@torch.no_grad()
def measure(network: nn.Module, samples: Samples, frozen: bool = False) -> dict[str, float]:
    """Return loss and accuracy by the middle clips, and with ``frozen`` the accuracy where these stand still."""
    network.eval()
    device = next(network.parameters()).device
    loss, right, still, count = 0.0, 0, 0, 0
    for pixels, numbers in samples.middles():
        labels = torch.from_numpy(numbers).to(device)
        logits = network(torch.from_numpy(samples.spec.from_pixels(pixels)).to(device))
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
        right += int((logits.argmax(1) == labels).sum())
        count += len(numbers)
        if frozen:
            stills = samples.spec.from_pixels(np.stack([freeze(clip) for clip in pixels]))
            still += int((network(torch.from_numpy(stills).to(device)).argmax(1) == labels).sum())
    found = {"loss": loss / count, "accuracy": right / count}
    return found | ({"frozen accuracy": still / count} if frozen else {})


def _names_hash(*parts: Samples) -> str:
    """Return one hash of which videos are learnt and tested, wherever they lie."""
    names = [[video.name, video.label] for part in parts for video in part.videos]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _named(data: Dataset, names: tuple[str, ...]) -> str:
    for name in names:
        if name in data.splits:
            return name
    having = ", ".join(data.splits) or "none"
    raise InputError(
        f"{data.name} has no split {' or '.join(names)} (it has: {having}): put train and test into the column split, "
        "or into folders above the classes"
    )


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str | list)
