"""How a network is trained: every number that decides it, under a name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError


@dataclass(frozen=True)
class Recipe:
    """Optimiser, schedule and what is done to the clips.

    ``schedule`` "plateau" divides the rate by ten after ``patience`` epochs without a lower training loss, and ends
    where it has done so three times; "one-cycle" raises the rate once and lets it fall to nothing. Where ``epochs`` is
    None, there are as many as ``iterations`` batches take. ``gradient`` is the length that a batch's gradient is scaled
    down to where it is longer. ``half`` multiplies in bfloat16. ``standardise`` also divides by the data's standard
    deviation, where the paper takes the channel means off alone. ``batch_norms`` puts batch norms behind the
    convolutions of a network that has no normalisation, and folds them into these when it is saved.

    A clip begins at a frame that is drawn. ``zoom`` draws a square of up to so many times the crop's side, about the
    centre (1: the centre crop); ``brightness`` a factor, up to so far from 1; ``flip`` mirrors half of the clips.

    Raises InputError for a number that cannot be.
    """

    name: str
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch: int = 32
    epochs: int | None = None
    iterations: int = 60_000
    schedule: Literal["plateau", "one-cycle"] = "plateau"
    patience: int = 10
    gradient: float | None = None
    half: bool = False
    standardise: bool = False
    batch_norms: bool = False
    zoom: float = 1.0
    brightness: float = 0.0
    flip: bool = False
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("batch", "iterations", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.epochs is not None and self.epochs < 1:
            raise InputError(f"epochs must be at least 1, got {self.epochs}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"the learning rate must be a number above 0, got {self.learning_rate}")
        if not 1 <= self.zoom <= 4:
            raise InputError(f"zoom must lie in 1…4, got {self.zoom}")

    def epochs_of(self, batches: int) -> int:
        """Return how many epochs of so many batches there are."""
        return math.ceil(self.iterations / batches) if self.epochs is None else self.epochs


RECIPES = {
    # Hiley et al. 2020, §4.2; the momentum, which they do not state, is that of Tran et al. 2015's training.
    "paper": Recipe("paper"),
    "small": Recipe(
        "small",
        optimizer="adamw",
        learning_rate=3e-3,
        weight_decay=2e-2,
        batch=16,
        epochs=60,
        schedule="one-cycle",
        gradient=5.0,
        half=True,
        standardise=True,
        batch_norms=True,
        zoom=1.25,
        brightness=0.3,
        flip=True,
        label_smoothing=0.1,
    ),
}
