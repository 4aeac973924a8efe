"""Options of the motion selection, and the selection they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..attribution import VideoAttributor
from ..calibration.thresholds import REGION_Q, Calibration
from ..errors import InputError
from ..selection.regions import RegionSelection, check_q
from ..selection.selections import PRESETS, CalibratedSelection, MotionSelection, Selection, check_alpha

F = TypeVar("F", bound=Callable[..., Any])


def selection_options(command: F) -> F:
    """Add --n-sigma, --preset, --alpha, --q and --calibration."""
    for option in reversed(
        (
            click.option("--n-sigma", type=float, help="Threshold of the selection, in σ  [default: 4]"),
            click.option(
                "--preset",
                type=click.Choice([*PRESETS, "calibrated", "fdr"]),
                default="default",
                show_default=True,
                help="Settings of the selection.",
            ),
            click.option("--alpha", type=float, help="False-positive rate of --preset calibrated  [default: 0.001]"),
            click.option("--q", type=float, help="Rate of false discoveries of --preset fdr  [default: 0.1]"),
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
    preset: str, n_sigma: float | None, alpha: float | None, q: float | None, calibration_path: str | None
) -> dict[str, Any]:
    """Check that the options of the selection go together, and return the summary's entries for them."""
    calibrated = {"calibrated": ("alpha", alpha, 0.001, check_alpha), "fdr": ("q", q, 0.1, check_q)}
    for owner, (name, value, _, _) in calibrated.items():
        if value is not None and preset != owner:
            raise InputError(f"--{name} goes with --preset {owner} alone, not with {preset}")
    if preset in calibrated:
        name, value, default, check = calibrated[preset]
        if n_sigma is not None:
            raise InputError(f"--n-sigma does not go with --preset {preset}: give --{name}")
        rate = default if value is None else value
        check(rate)
        return {"preset": preset, "n_sigma": None, name: rate}
    if calibration_path is not None:
        raise InputError(f"--calibration goes with --preset calibrated and fdr alone, not with {preset}")
    n_sigma = 4.0 if n_sigma is None else n_sigma
    MotionSelection.preset(preset, n_sigma=n_sigma)
    return {"preset": preset, "n_sigma": n_sigma}


def chosen_selection(
    attributor: VideoAttributor, settings: dict[str, Any], calibration_path: str | None
) -> tuple[Selection, str | None]:
    """Return the selection, and a warning where its thresholds did not stand their verification."""
    if settings["preset"] in PRESETS:
        return MotionSelection.preset(settings["preset"], n_sigma=settings["n_sigma"]), None
    path = calibration_path
    calibration = Calibration.read(path) if path is not None else Calibration.shipped(attributor)
    selection: CalibratedSelection | RegionSelection
    doubt = None
    try:
        if settings["preset"] == "fdr":
            selection = calibration.region_selection(settings["q"])
            if calibration.false_alarms is not None and not calibration.regions_hold:
                doubt = (
                    f"regions are kept in {calibration.false_alarms:.0%} of the held-out still clips, in which nothing "
                    f"moves, where {REGION_Q:.0%} are promised: calibrate on more clips"
                )
        else:
            level = calibration.level(settings["alpha"])
            selection = calibration.selection(settings["alpha"])
            if not level.holds:
                doubt = (
                    f"the thresholds for alpha {level.alpha:g} let {level.held_out_rate:.2g} of the voxels of held-out "
                    "still clips pass: calibrate on more clips"
                )
        selection.check(attributor)
    except InputError as error:
        raise InputError(f"{path or 'the calibration that ships'}: {error}") from None
    return selection, doubt
