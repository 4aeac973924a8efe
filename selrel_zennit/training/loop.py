"""Training: epochs, a checkpoint after each, the best and the last weights, a log, and a picture of the curves."""

from __future__ import annotations

import json
import pickle
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from ..clips.cutting import freeze
from ..clips.spec import ClipSpec
from ..errors import InputError
from ..evaluate.dataset import Dataset
from ..files import atomic_path, sha256_file
from ..models.registry import load_model
from ..models.weights import read_weights
from . import batch_norms
from .curves import draw_curves
from .recipes import Recipe
from .samples import Samples, middle_clip

BEST, LAST, CHECKPOINT = "best.safetensors", "last.safetensors", "checkpoint.pt"
LOG, CURVES = "training.json", "curves.png"
_TRAIN, _VALIDATION = ("train",), ("validation", "validate", "val", "test")
# The gradient of a batch is scaled down to this length where it is longer.
_LONGEST = 5.0

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class Trained:
    """What came out: where the files lie, the log's rows, and what is measured on the validation videos.

    ``accuracy`` is the share of them that the best weights name rightly by their middle clip, ``frozen_accuracy`` the
    same with that clip frozen.
    """

    folder: Path
    rows: list[dict[str, Any]]
    accuracy: float
    frozen_accuracy: float
    minutes: float
    skipped: list[dict[str, str]]

    def __repr__(self) -> str:
        right = f"{self.accuracy:.1%} right, {self.frozen_accuracy:.1%} frozen"
        return f"Trained({len(self.rows)} epochs in {self.minutes:.1f} min: {right}; {self.folder})"


def train(
    data: Dataset,
    out: str | Path,
    *,
    model: str | Callable[..., nn.Module] = "small3d",
    recipe: Recipe,
    spec: ClipSpec | None = None,
    initial: str | Path | None = None,
    seed: int = 0,
    validation: str | None = None,
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
    if recipe.flip and any(video.made is not None for video in learning):
        # Mirrored, a sprite that goes to the left goes to the right: another class.
        recipe = replace(recipe, flip=False)
    spec = spec or _own_spec(model, len(data.classes))
    shown = Samples(learning, spec, recipe)
    mean, std = shown.moments()
    scale = (spec.value_range[1] - spec.value_range[0]) / 255
    low = spec.value_range[0]
    spec = replace(
        spec,
        mean=_each(mean, scale, low),
        std=_each(std, scale, 0.0) if recipe.standardise else spec.std,
    )
    shown.spec = spec
    tested = Samples(held_out, spec, replace(recipe, augment=False))
    settings = {
        "data": data.name,
        "classes": list(data.classes),
        "videos": {"train": len(shown), "validation": len(tested)},
        "model": model if isinstance(model, str) else model.__qualname__,
        "recipe": asdict(recipe),
        "spec": spec.to_dict(),
        "initial": None if initial is None else sha256_file(initial),
        "seed": seed,
    }
    settings = json.loads(json.dumps(settings))
    torch.manual_seed(seed)
    network = _network(model, len(data.classes), spec, initial, seed)
    if recipe.batch_norms:
        batch_norms.insert(network)
    network = network.to(memory_format=torch.channels_last_3d).requires_grad_(True)
    run = _Run(network, recipe, seed, len(list(shown.order(seed, 0))))
    rows, best, minutes = run.resume(out / CHECKPOINT, settings)
    out.mkdir(parents=True, exist_ok=True)
    card = {"spec": spec, "classes": data.classes, "model": settings["model"]}
    skipped = [asdict(entry) for entry in (*shown.skipped, *tested.skipped)]
    began = time.perf_counter()
    for epoch in range(len(rows), recipe.epochs):
        loss, accuracy = run.epoch(shown, epoch, progress)
        plain = batch_norms.folded(network)
        found = measure(plain, tested)
        spent = minutes + (time.perf_counter() - began) / 60
        rows.append(
            {"epoch": epoch + 1, "rate": run.rate, "loss": loss, "accuracy": accuracy, **found, "minutes": spent}
        )
        score = (found["validation accuracy"], -found["validation loss"])
        if best is None or score > tuple(best):
            best = list(score)
            _save(plain, out / BEST, **card)
        _save(plain, out / LAST, **card)
        _write(out / LOG, {"settings": settings, "skipped": skipped, "epochs": rows, "best": best})
        # Last: what a checkpoint counts as done is there.
        run.keep(out / CHECKPOINT, settings, rows, best, spent)
        if run.ended:
            break
    draw_curves(rows, out / CURVES, f"{settings['model']} on {data.name}")
    network = load_model(model, out / BEST, num_classes=len(data.classes))
    found = measure(network, tested, frozen=True)
    result = {"accuracy": found["validation accuracy"], "frozen accuracy": found["frozen accuracy"]}
    spent = rows[-1]["minutes"]
    _write(out / LOG, {"settings": settings, "skipped": skipped, "epochs": rows, "best": best, **result})
    return Trained(out, rows, result["accuracy"], result["frozen accuracy"], spent, skipped)


class _Run:
    """A network, its optimiser and schedule, and where they stand."""

    def __init__(self, network: nn.Module, recipe: Recipe, seed: int, batches: int) -> None:
        self.network, self.recipe, self.seed, self.batches = network, recipe, seed, batches
        rate, decay = recipe.learning_rate, recipe.weight_decay
        parameters = list(network.parameters())
        self.optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(parameters, rate, momentum=recipe.momentum, weight_decay=decay)
        else:
            self.optimizer = torch.optim.AdamW(parameters, rate, weight_decay=decay)
        self.schedule: Any
        if recipe.schedule == "plateau":
            self.schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, patience=recipe.patience)
        else:
            steps = max(batches * recipe.epochs, 2)
            self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rate, total_steps=steps)

    @property
    def rate(self) -> float:
        """The learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def ended(self) -> bool:
        """Whether the rate has fallen so far that nothing will be learnt any more."""
        return self.recipe.schedule == "plateau" and self.rate < self.recipe.learning_rate * 1e-3

    def epoch(self, shown: Samples, epoch: int, progress: Progress | None) -> tuple[float, float]:
        """Go through the videos once; return the mean loss and the share of right answers."""
        # Dropout's: drawn anew for each epoch, so that a training that goes on draws the same.
        torch.manual_seed(self.seed * 100_003 + epoch)
        self.network.train()
        losses, right, count = 0.0, 0, 0
        batches: Iterable[list[int]] = shown.order(self.seed, epoch)
        if progress is not None:
            batches = progress(batches, f"epoch {epoch + 1}/{self.recipe.epochs}", self.batches)
        for numbers in batches:
            clips = torch.from_numpy(shown.batch(numbers, self.seed, epoch))
            labels = torch.from_numpy(shown.labels[numbers])
            with torch.autocast("cpu", torch.bfloat16):
                logits = self.network(clips.contiguous(memory_format=torch.channels_last_3d)).float()
            loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
            if not torch.isfinite(loss):
                raise InputError(
                    f"the loss is no number any more in epoch {epoch + 1}: take a lower --learning-rate "
                    f"(it is {self.rate:.3g})"
                )
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.network.parameters(), _LONGEST)
            self.optimizer.step()
            if self.recipe.schedule == "one-cycle":
                self.schedule.step()
            losses += float(loss.detach()) * len(numbers)
            right += int((logits.argmax(1) == labels).sum())
            count += len(numbers)
        if self.recipe.schedule == "plateau":
            self.schedule.step(losses / count)
        return losses / count, right / count

    def keep(
        self, path: Path, settings: dict[str, Any], rows: list[Any], best: list[float] | None, minutes: float
    ) -> None:
        with atomic_path(path) as temporary:
            torch.save(
                {
                    "settings": json.dumps(settings),
                    "network": self.network.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "schedule": {key: value for key, value in self.schedule.state_dict().items() if _plain(value)},
                    "rows": rows,
                    "best": best,
                    "minutes": minutes,
                },
                temporary,
            )

    def resume(self, path: Path, settings: dict[str, Any]) -> tuple[list[dict[str, Any]], list[float] | None, float]:
        if not path.exists():
            return [], None, 0.0
        try:
            kept = torch.load(path, weights_only=True)
            before = json.loads(kept["settings"])
        except (OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, KeyError, ValueError) as error:
            raise InputError(f"{path} is no checkpoint of a training: remove it to begin anew") from error
        other = [key for key in settings if before.get(key) != settings[key]]
        if other:
            raise InputError(
                f"{path} belongs to another training, with other {', '.join(other)}: choose another --out, "
                "or remove it to begin anew"
            )
        self.network.load_state_dict(kept["network"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.schedule.load_state_dict(kept["schedule"])
        return kept["rows"], kept["best"], kept["minutes"]


@torch.no_grad()
def measure(network: nn.Module, samples: Samples, frozen: bool = False) -> dict[str, float]:
    """Return loss and accuracy by the middle clips, and with ``frozen`` the accuracy where these stand still."""
    network.eval()
    loss, right, still = 0.0, 0, 0
    for first in range(0, len(samples), 16):
        numbers = list(range(first, min(first + 16, len(samples))))
        pixels = [middle_clip(samples.frames(number), samples.spec) for number in numbers]
        labels = torch.from_numpy(samples.labels[numbers])
        logits = network(torch.from_numpy(samples.spec.from_pixels(np.stack(pixels))))
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
        right += int((logits.argmax(1) == labels).sum())
        if frozen:
            stills = np.stack([freeze(clip) for clip in pixels])
            still += int((network(torch.from_numpy(samples.spec.from_pixels(stills))).argmax(1) == labels).sum())
    found = {"validation loss": loss / len(samples), "validation accuracy": right / len(samples)}
    return found | ({"frozen accuracy": still / len(samples)} if frozen else {})


def _each(values: tuple[float, float, float], scale: float, offset: float) -> tuple[float, float, float]:
    """Turn grey levels of 0…255 into units of a ClipSpec's value_range."""
    red, green, blue = (offset + value * scale for value in values)
    return red, green, blue


def _named(data: Dataset, names: tuple[str, ...]) -> str:
    for name in names:
        if name in data.splits:
            return name
    having = ", ".join(data.splits) or "none"
    raise InputError(
        f"{data.name} has no split {' or '.join(names)} (it has: {having}): put train and test into the column split, "
        "or into folders above the classes"
    )


def _own_spec(model: str | Callable[..., nn.Module], classes: int) -> ClipSpec:
    spec = load_model(model, "random", num_classes=classes).spec
    assert isinstance(spec, ClipSpec)
    return spec


def _network(
    model: str | Callable[..., nn.Module], classes: int, spec: ClipSpec, initial: str | Path | None, seed: int
) -> nn.Module:
    network = load_model(model, "random", num_classes=classes, spec=spec, seed=seed)
    if initial is None:
        return network
    state, own = read_weights(initial), network.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    left = [key for key in own if key not in fitting]
    head = list(own)[-1].rpartition(".")[0]
    if any(key.rpartition(".")[0] != head for key in left):
        raise InputError(
            f"{initial} does not fit the model: {len(fitting)} of {len(own)} tensors do; "
            "weights to begin with are of the same network, for the same clips"
        )
    network.load_state_dict({**own, **fitting})
    return network


def _save(network: nn.Module, path: Path, *, spec: ClipSpec, classes: tuple[str, ...], model: str) -> None:
    """Write weights that say what clips and classes they are for."""
    card = {"selrel": json.dumps({"model": model, "spec": spec.to_dict(), "classes": list(classes)})}
    with atomic_path(path) as temporary:
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, temporary, metadata=card)


def _write(path: Path, values: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str | list)
