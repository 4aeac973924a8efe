"""The parity certificate: does a runner compute the same explanation? Public names load when they are first used."""

from typing import TYPE_CHECKING

from selrel_kernels.lazy import lazy_names

if TYPE_CHECKING:
    from .certificate import Certificate as Certificate
    from .certify import certify as certify
    from .certify import certify_golden as certify_golden

_NAMES = {
    "Certificate": "certificate",
    "certify": "certify",
    "certify_golden": "certify",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, globals())
