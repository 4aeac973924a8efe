"""Explanations of video models that separate motion from scenery. Public names load when they are first used."""

from typing import TYPE_CHECKING

from selrel_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from .attribution import METHODS as METHODS
    from .attribution import build_method as build_method
    from .attribution import one_hot as one_hot
    from .attribution import register_method as register_method
    from .calibration import Calibration as Calibration
    from .calibration import calibrate as calibrate
    from .clip import ClipSpec as ClipSpec
    from .comparison import Versus as Versus
    from .comparison import versus as versus
    from .errors import InputError as InputError
    from .explanation import Explanation as Explanation
    from .models import MODELS as MODELS
    from .models import load_model as load_model
    from .models import register_model as register_model
    from .pipeline import explain as explain
    from .selection import CalibratedSelection as CalibratedSelection
    from .selection import MotionSelection as MotionSelection
    from .selection import Selective as Selective
    from .video import iter_frames as iter_frames
    from .video import read_frames as read_frames

__version__ = "0.1.0"

_NAMES = {
    "CalibratedSelection": "selection",
    "Calibration": "calibration",
    "ClipSpec": "clip",
    "Explanation": "explanation",
    "InputError": "errors",
    "METHODS": "attribution",
    "MODELS": "models",
    "MotionSelection": "selection",
    "Selective": "selection",
    "build_method": "attribution",
    "calibrate": "calibration",
    "explain": "pipeline",
    "iter_frames": "video",
    "load_model": "models",
    "one_hot": "attribution",
    "read_frames": "video",
    "register_method": "attribution",
    "register_model": "models",
    "versus": "comparison",
    "Versus": "comparison",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
