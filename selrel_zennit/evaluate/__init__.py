"""Labelled data sets: methods, selections and networks measured on them."""

from typing import TYPE_CHECKING

from selrel_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from .dataset import Dataset as Dataset
    from .dataset import LabelledVideo as LabelledVideo
    from .dataset import read_dataset as read_dataset
    from .evaluation import Evaluation as Evaluation
    from .evaluation import evaluate as evaluate
    from .flow import optical_flow as optical_flow
    from .settings import Settings as Settings
    from .statistics import Interval as Interval

_NAMES = {
    "Dataset": "dataset",
    "Evaluation": "evaluation",
    "Interval": "statistics",
    "LabelledVideo": "dataset",
    "Settings": "settings",
    "evaluate": "evaluation",
    "optical_flow": "flow",
    "read_dataset": "dataset",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
