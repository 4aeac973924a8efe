"""Motion selection, by n·σ and by calibrated thresholds; Selective: an attributor that selects another's relevance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy.typing as npt
import torch
from zennit.attribution import Attributor

from selrel_kernels.checks import check_settings, check_thresholds
from selrel_kernels.ops import select_motion

from ..attribution.base import AttrOutput
from ..attribution.foreign import as_attributor
from ..errors import InputError
from ..text import close_names
from .presets import SETTINGS
from .regions import RegionSelection
from .relevance_source import RelevanceSource

Array = TypeVar("Array", torch.Tensor, npt.NDArray[Any])


@dataclass(frozen=True)
class MotionSelection:
    """Which relevance moves: the Sobel derivative over time exceeds ``n_sigma`` of its own standard deviations.

    The fields are those of ``selrel_kernels.select_motion``, which says what each means. Works on any relevance map,
    torch or NumPy: [B,C,T,H,W], or [B,T,H,W] with the channels summed. Raises InputError on construction for a value
    that does not exist.

    Source: Hiley et al. 2020, arXiv 2003.14285, §3.
    """

    n_sigma: float = 4.0
    sign: str = "absolute"
    sigma: str = "signed"
    border: str = "replicate"
    normalise: str = "none"

    def __post_init__(self) -> None:
        try:
            check_settings(**asdict(self))
        except (TypeError, ValueError) as error:
            raise InputError(str(error)) from None

    @classmethod
    def preset(cls, name: str, n_sigma: float = 4.0) -> MotionSelection:
        """Return the settings of a preset: default, paper, author-2020 or author-2021. Raises InputError otherwise."""
        if name not in PRESETS:
            hint = "; calibrated takes a Calibration: Calibration.shipped(attributor).selection(alpha)"
            raise InputError(
                f"no preset named {name!r}{close_names(name, PRESETS)}; there are {', '.join(PRESETS)}"
                f"{hint if name == 'calibrated' else ''}"
            )
        return replace(PRESETS[name].selection, n_sigma=n_sigma)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of ``select_motion`` that this is."""
        return asdict(self)

    def __call__(self, relevance: Array) -> tuple[Array, Array]:
        """Return (motion relevance in the input's shape and type, mask bool [B,T,H,W])."""
        return select_motion(relevance, **self.settings)

    def mask(self, relevance: Array) -> Array:
        """Return the mask alone, bool [B,T,H,W]."""
        return self(relevance)[1]


@dataclass(frozen=True)
class CalibratedSelection:
    """Which relevance moves: more than all but a share ``alpha`` of the voxels of clips in which nothing moves.

    |G_t| of relevance divided by its Σ|R| must exceed ``thresholds[t]``, one number per time step. G is that of
    MotionSelection with its default settings. ``made_for`` says whose relevance the thresholds were measured on; they
    mean nothing for another's. A ``Calibration`` makes such selections.

    Called like MotionSelection. Raises InputError on construction for an alpha outside (0, 0.5) or thresholds that are
    not one finite number per time step.
    """

    alpha: float
    thresholds: tuple[float, ...]
    made_for: RelevanceSource

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        try:
            values = check_thresholds(self.thresholds, self.made_for.steps)
        except (TypeError, ValueError) as error:
            raise InputError(str(error)) from None
        object.__setattr__(self, "thresholds", values)

    def check(self, attributor: Attributor) -> None:
        """Raise InputError unless the thresholds were made for this attributor: its model, method and options."""
        difference = self.made_for.difference(RelevanceSource.of(attributor))
        if difference:
            raise InputError(f"the calibration is for another {difference}: make one with `selrel calibrate`")

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of ``select_motion`` that this is."""
        return {"thresholds": self.thresholds}

    def __call__(self, relevance: Array) -> tuple[Array, Array]:
        """Return (motion relevance in the input's shape and type, mask bool [B,T,H,W])."""
        return select_motion(relevance, **self.settings)

    def mask(self, relevance: Array) -> Array:
        """Return the mask alone, bool [B,T,H,W]."""
        return self(relevance)[1]


Selection = MotionSelection | CalibratedSelection | RegionSelection


def check_alpha(alpha: Any) -> None:
    """Raise InputError unless ``alpha`` is a false-positive rate, a number in (0, 0.5)."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 0.5:
        raise InputError(f"alpha is a false-positive rate and must lie in (0, 0.5), got {alpha!r}")


@dataclass(frozen=True)
class Preset:
    """A named MotionSelection, and where it comes from."""

    selection: MotionSelection
    summary: str


PRESETS = {name: Preset(MotionSelection(**settings), summary) for name, (settings, summary) in SETTINGS.items()}


class Selective(Attributor):
    """An attributor that returns the motion relevance of another one, in the input's shape.

    >>> with Selective(attributor, MotionSelection(n_sigma=4)) as selective:
    ...     logits, motion_relevance = selective(clip, one_hot(target, num_classes))

    ``attributor`` is any Zennit attributor whose attribution is [B,C,T,H,W]; see as_attributor. Raises InputError for
    one that selects already, or that the selection was not calibrated for.
    """

    def __init__(self, attributor: Attributor, selection: Selection | None = None) -> None:
        if isinstance(attributor, Selective):
            raise InputError("the attributor selects already: pass Selective(…) or a selection, not both")
        attributor = as_attributor(attributor, attributor.model)
        if not isinstance(selection, MotionSelection | None):
            selection.check(attributor)
        super().__init__(attributor.model, attributor.composite)
        self.attributor = attributor
        self.selection = selection or MotionSelection()

    @property
    def info(self) -> dict[str, Any]:
        """What the inner attributor is, and the settings of the selection."""
        return {**self.attributor.info, "selection": asdict(self.selection)}

    def __enter__(self) -> Selective:
        self.attributor.__enter__()
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> bool:
        return bool(self.attributor.__exit__(exc_type, exc_value, traceback))

    def __call__(self, input: torch.Tensor, attr_output: AttrOutput = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B,K], motion relevance [B,C,T,H,W])."""
        output, relevance = self.attributor(input, attr_output)
        return output, self.selection(relevance)[0]

    def forward(
        self, input: torch.Tensor, attr_output_fn: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what ``__call__`` does, without registering the composite."""
        output, relevance = self.attributor.forward(input, attr_output_fn)
        return output, self.selection(relevance)[0]
