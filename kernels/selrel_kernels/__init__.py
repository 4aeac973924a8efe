"""Motion selection of relevance maps, as plain functions. Public names load when they are first used."""

from typing import TYPE_CHECKING

from .lazy import lazy_names

if TYPE_CHECKING:
    from .ops import select_motion as select_motion

__all__ = ["select_motion"]

__getattr__, __dir__ = lazy_names(__name__, {"select_motion": "ops"}, globals())
