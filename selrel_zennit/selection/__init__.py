"""What of a relevance map moves. Public names load when they are first used."""

from typing import TYPE_CHECKING

from selrel_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from .regions import RegionNull as RegionNull
    from .regions import RegionSelection as RegionSelection
    from .relevance_source import RelevanceSource as RelevanceSource
    from .selections import PRESETS as PRESETS
    from .selections import CalibratedSelection as CalibratedSelection
    from .selections import MotionSelection as MotionSelection
    from .selections import Selection as Selection
    from .selections import Selective as Selective

_NAMES = {
    "CalibratedSelection": "selections",
    "MotionSelection": "selections",
    "PRESETS": "selections",
    "RegionNull": "regions",
    "RegionSelection": "regions",
    "RelevanceSource": "relevance_source",
    "Selection": "selections",
    "Selective": "selections",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
