"""How a network is trained: every number that decides it, under a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import InputError

Schedule = Literal["plateau", "one-cycle"]


@dataclass(frozen=True)
class Recipe:
    """Optimiser, schedule and what is done to the clips.

    ``schedule`` "plateau" divides the rate by ten after ``patience`` epochs without a lower training loss, "one-cycle"
    raises it once and lets it fall to nothing. ``standardise`` also divides by the data's standard deviation, where
    the paper takes the channel means off alone. ``batch_norms`` puts batch norms behind the convolutions of a network
    that has no normalisation, and folds them into these when it is saved. ``augment`` draws where a clip begins, a
    crop a little larger or smaller than the network's (``zoom``), and how bright it is; otherwise a clip is the middle
    of its video, centre-cropped. ``flip`` mirrors half of the clips.

    Raises InputError for a number that cannot be.
    """

    name: str
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch: int = 32
    epochs: int = 40
    schedule: Schedule = "plateau"
    patience: int = 10
    standardise: bool = False
    batch_norms: bool = False
    augment: bool = False
    zoom: float = 1.0
    brightness: float = 0.0
    flip: bool = False
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("epochs", 1), ("patience", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise InputError(f"the learning rate must be above 0, got {self.learning_rate}")
        if self.zoom < 1:
            raise InputError(f"zoom must be at least 1, got {self.zoom}")


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
        standardise=True,
        batch_norms=True,
        augment=True,
        zoom=1.25,
        brightness=0.3,
        flip=True,
        label_smoothing=0.1,
    ),
}
