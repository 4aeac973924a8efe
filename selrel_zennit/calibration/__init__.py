"""Thresholds that a stated share of the voxels passes where nothing moves."""

from typing import TYPE_CHECKING

from selrel_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from .camera import Camera as Camera
    from .measure import calibrate as calibrate
    from .stills import Stills as Stills
    from .stills import still_footage as still_footage
    from .stills import synthetic_stills as synthetic_stills
    from .stills import video_stills as video_stills
    from .thresholds import Calibration as Calibration
    from .thresholds import Level as Level
    from .thresholds import shipped_for as shipped_for

_NAMES = {
    "Calibration": "thresholds",
    "Camera": "camera",
    "Level": "thresholds",
    "Stills": "stills",
    "calibrate": "measure",
    "shipped_for": "thresholds",
    "still_footage": "stills",
    "synthetic_stills": "stills",
    "video_stills": "stills",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
