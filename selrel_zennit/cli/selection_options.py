"""Options of the motion selection, and the selection they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..attribution import VideoAttributor
from ..calibration.thresholds import Calibration
from ..errors import InputError
from ..selection.selections import PRESETS, MotionSelection, Selection, check_alpha

F = TypeVar("F", bound=Callable[..., Any])


def selection_options(command: F) -> F:
    """Add --n-sigma, --preset, --alpha and --calibration."""
    for option in reversed(
        (
            click.option("--n-sigma", type=float, help="Threshold of the selection, in σ  [default: 4]"),
            click.option(
                "--preset",
                type=click.Choice([*PRESETS, "calibrated"]),
                default="default",
                show_default=True,
                help="Settings of the selection.",
            ),
            click.option("--alpha", type=float, help="False-positive rate of --preset calibrated  [default: 0.001]"),
            click.option(
                "--calibration",
                "calibration_path",
                help="A file of `selrel calibrate`  [default: the one that ships]",
            ),
        )
    ):
        command = option(command)
    return command


def selection_settings(
    preset: str, n_sigma: float | None, alpha: float | None, calibration_path: str | None
) -> dict[str, Any]:
    """Check that the options of the selection go together, and return the summary's entries for them."""
    if preset == "calibrated":
        if n_sigma is not None:
            raise InputError("--n-sigma does not go with --preset calibrated: give --alpha")
        alpha = 0.001 if alpha is None else alpha
        check_alpha(alpha)
        return {"preset": preset, "n_sigma": None, "alpha": alpha}
    for name, value in (("--alpha", alpha), ("--calibration", calibration_path)):
        if value is not None:
            raise InputError(f"{name} goes with --preset calibrated alone, not with {preset}")
    n_sigma = 4.0 if n_sigma is None else n_sigma
    MotionSelection.preset(preset, n_sigma=n_sigma)
    return {"preset": preset, "n_sigma": n_sigma}


def chosen_selection(
    attributor: VideoAttributor, settings: dict[str, Any], calibration_path: str | None
) -> tuple[Selection, str | None]:
    """Return the selection, and a warning where its thresholds did not stand their verification."""
    if settings["preset"] != "calibrated":
        return MotionSelection.preset(settings["preset"], n_sigma=settings["n_sigma"]), None
    path = calibration_path
    calibration = Calibration.read(path) if path is not None else Calibration.shipped(attributor)
    level = calibration.level(settings["alpha"])
    selection = calibration.selection(settings["alpha"])
    try:
        selection.check(attributor)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if level.holds:
        return selection, None
    return selection, (
        f"the thresholds for alpha {level.alpha:g} let {level.held_out_rate:.2g} of the voxels of held-out frozen "
        "clips pass: calibrate on more clips"
    )
