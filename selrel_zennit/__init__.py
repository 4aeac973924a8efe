"""Explanations of video models that separate motion from scenery. Public names load when they are first used."""

from typing import TYPE_CHECKING

from selrel_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from .attribution import METHODS as METHODS
    from .attribution import build_method as build_method
    from .attribution import one_hot as one_hot
    from .attribution import register_method as register_method
    from .calibration.measure import calibrate as calibrate
    from .calibration.thresholds import Calibration as Calibration
    from .clips.spec import ClipSpec as ClipSpec
    from .clips.video import iter_frames as iter_frames
    from .clips.video import read_frames as read_frames
    from .comparison import Versus as Versus
    from .comparison import versus as versus
    from .errors import InputError as InputError
    from .explanation import Explanation as Explanation
    from .loop import explain_clips as explain_clips
    from .many import explain_many as explain_many
    from .models import MODELS as MODELS
    from .models import load_model as load_model
    from .models import register_model as register_model
    from .pipeline import ModelExplainer as ModelExplainer
    from .pipeline import explain as explain
    from .selection.selections import CalibratedSelection as CalibratedSelection
    from .selection.selections import MotionSelection as MotionSelection
    from .selection.selections import Selective as Selective

__version__ = "0.1.0"

_NAMES = {
    "CalibratedSelection": "selection.selections",
    "Calibration": "calibration.thresholds",
    "ClipSpec": "clips.spec",
    "Explanation": "explanation",
    "InputError": "errors",
    "METHODS": "attribution",
    "MODELS": "models",
    "ModelExplainer": "pipeline",
    "MotionSelection": "selection.selections",
    "Selective": "selection.selections",
    "build_method": "attribution",
    "calibrate": "calibration.measure",
    "explain": "pipeline",
    "explain_clips": "loop",
    "explain_many": "many",
    "iter_frames": "clips.video",
    "load_model": "models",
    "one_hot": "attribution",
    "read_frames": "clips.video",
    "register_method": "attribution",
    "register_model": "models",
    "versus": "comparison",
    "Versus": "comparison",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
