"""Training video networks on labelled videos: the paper's recipe, and one that works from scratch on two cores."""

from typing import TYPE_CHECKING

from selrel_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from .loop import Trained as Trained
    from .loop import train as train
    from .recipes import RECIPES as RECIPES
    from .recipes import Recipe as Recipe

_NAMES = {"RECIPES": "recipes", "Recipe": "recipes", "Trained": "loop", "train": "loop"}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
