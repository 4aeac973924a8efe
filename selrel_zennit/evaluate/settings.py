"""What an evaluation measures, as one TOML file that repeats it."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..text import close_names
from .controls import CONTROLS
from .flow import FLOWS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The four of the paper; motion_lrp, whose parts sum; and chance.
METHODS = ("dtd", "gradcam", "guided_backprop", "guided_gradcam", "motion_lrp:reference=middle", "random")


_UNUSED = ("control", None)


@dataclass(frozen=True)
class Settings:
    """Everything that a row depends on beside the video.

    ``dataset``, ``split`` and ``classes`` say which videos; ``model``, ``weights`` and ``num_classes`` are
    load_model's. ``methods`` are names of METHODS or package.module:name, each with options where it has some
    ("motion_lrp:reference=middle;beta=1"), and "random", a map of noise. ``levels`` are the n of n·σ. ``clips`` is how
    many clips of a video are taken, spread evenly over it. ``boxes`` is how many boxes of its size are covered beside a
    video's own, for the causal test. ``audit`` asks for the answers on frozen, shuffled and reversed clips.
    ``control`` shows the network videos under one of ``controls.CONTROLS``.

    Raises InputError for an estimator, level or number that cannot be.
    """

    dataset: str
    model: str = "demo"
    weights: str | None = None
    num_classes: int | None = None
    root: str | None = None
    split: str | None = None
    classes: tuple[str, ...] | None = None
    methods: tuple[str, ...] = METHODS
    levels: tuple[float, ...] = (1.0, 2.0, 4.0)
    flows: tuple[str, ...] = ("farneback", "dis")
    clips: int = 1
    boxes: int = 8
    audit: bool = True
    control: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.flows:
            if name not in FLOWS:
                raise InputError(
                    f"no optical flow named {name!r}{close_names(name, FLOWS)}; there are: {', '.join(FLOWS)}"
                )
        if self.control is not None and self.control not in CONTROLS:
            raise InputError(
                f"no control {self.control!r}{close_names(self.control, CONTROLS)}; there are: {', '.join(CONTROLS)}"
            )
        if not self.methods and not self.audit:
            raise InputError("nothing to measure: give methods, or leave --no-audit out")
        if any(not level > 0 for level in self.levels):
            raise InputError(f"n·σ takes numbers above 0, got {self.levels}")
        if self.clips < 1 or self.boxes < 0:
            raise InputError(f"clips must be at least 1 and boxes at least 0, got {self.clips} and {self.boxes}")

    @property
    def what(self) -> str:
        """A hash of what decides a row's values: not which videos, and not which other methods."""
        left = {"dataset", "root", "split", "classes", "methods", "clips", "weights"}
        # A setting that came later and is not used leaves the rows of before as they were.
        decides = {key: value for key, value in asdict(self).items() if key not in left and (key, value) != _UNUSED}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

    def to_toml(self) -> str:
        """Return the settings as a TOML file."""
        lines = ["# selrel evaluate --settings FILE repeats this evaluation."]
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is not None:
                lines.append(f"{entry.name} = {json.dumps(list(value) if isinstance(value, tuple) else value)}")
        return "\n".join(lines) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> Settings:
        """Read a TOML file. Raises InputError for one that is missing or none, and for a key that there is not."""
        try:
            values: dict[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"{path} is no TOML file of settings: {error}") from None
        known = [entry.name for entry in fields(cls)]
        for key, value in values.items():
            if key not in known:
                raise InputError(f"{path}: no setting {key!r}{close_names(key, known)}; there are: {', '.join(known)}")
            if isinstance(value, list):
                values[key] = tuple(value)
        if "dataset" not in values:
            raise InputError(f"{path} names no dataset")
        return cls(**values)
