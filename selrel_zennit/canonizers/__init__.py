"""What is put in order before rules are: sums, gates, attention, functions, batch norms."""

from typing import TYPE_CHECKING

from selrel_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from .attention import AttentionCanonizer as AttentionCanonizer
    from .batch_norm import BatchNormCanonizer as BatchNormCanonizer
    from .batch_norm import VideoCanonizer as VideoCanonizer
    from .function_canonizer import FunctionCanonizer as FunctionCanonizer
    from .gates import Gate as Gate
    from .gates import GateCanonizer as GateCanonizer

_NAMES = {
    "AttentionCanonizer": "attention",
    "BatchNormCanonizer": "batch_norm",
    "FunctionCanonizer": "function_canonizer",
    "Gate": "gates",
    "GateCanonizer": "gates",
    "VideoCanonizer": "batch_norm",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
