"""Public names of a package, resolved when they are first asked for (PEP 562)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, str], namespace: dict[str, Any]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the module-level ``__getattr__`` and ``__dir__`` of ``package``.

    ``names`` maps each public name to the submodule that defines it (``""``: the name is a submodule itself);
    ``namespace`` is the package's ``globals()``, where a resolved name is kept so that it is looked up once.
    An unknown name raises AttributeError, as for any module.
    """

    def __getattr__(name: str) -> Any:
        try:
            submodule = names[name]
        except KeyError:
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        module = importlib.import_module(f"{package}.{submodule or name}")
        value = getattr(module, name) if submodule else module
        namespace[name] = value
        return value

    def __dir__() -> list[str]:
        # What a module imports for itself is in its namespace too, and nobody's to use.
        return sorted({*names, *(name for name in namespace if name.startswith("__"))})

    return __getattr__, __dir__
