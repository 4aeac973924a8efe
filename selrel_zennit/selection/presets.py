"""Named settings of the motion selection, and where they come from. The standard library alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# name → (arguments of ``select_motion`` but n_sigma, summary)
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "default": (
        {"sign": "absolute", "sigma": "signed", "border": "replicate", "normalise": "none"},
        "rising and falling relevance, replicated border: no false edge in the first and last frame",
    ),
    "paper": (
        {"sign": "rising", "sigma": "signed", "border": "zero", "normalise": "none"},
        "rising relevance only, zero border: the formula of Hiley et al. 2020, §3",
    ),
    "author-2020": (
        {"sign": "falling", "sigma": "signed", "border": "zero", "normalise": "author-2020"},
        "falling relevance only, zero border, map scaled first: the authors' code at 792e054",
    ),
    "author-2021": (
        {"sign": "absolute", "sigma": "absolute", "border": "zero", "normalise": "none"},
        "rising and falling, σ of |G|, zero border: the authors' code from 6182308 to e360220",
    ),
}


def preset_of(selection: Mapping[str, Any]) -> str:
    """Return the preset that the arguments of ``select_motion`` are of; "custom" where they are of none."""
    if "thresholds" in selection:
        return "calibrated"
    settings = {key: value for key, value in selection.items() if key != "n_sigma"}
    return next((name for name, (known, _) in SETTINGS.items() if known == settings), "custom")
