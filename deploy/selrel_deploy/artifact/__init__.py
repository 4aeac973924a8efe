"""Artifacts: the files that devices get. Public names load when they are first used."""

from typing import TYPE_CHECKING

from selrel_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from .export import export as export
    from .format import Artifact as Artifact
    from .format import read_artifact as read_artifact

_NAMES = {
    "Artifact": "format",
    "export": "export",
    "read_artifact": "format",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
