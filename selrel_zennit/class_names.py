"""Classes by index or by name. The standard library alone."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import InputError
from .text import close_names


def class_index(target: str, num_classes: int, class_names: Sequence[str] | None) -> int:
    """Return the class that a text means: "top1" is −1, else an index or a name of ``class_names``.

    Raises InputError for a name or index that does not exist, and for a name that several classes have.
    """
    if target == "top1":
        return -1
    if class_names is not None and list(class_names).count(target) > 1:
        raise InputError(f"{list(class_names).count(target)} classes are named {target!r}: give the index")
    if class_names is not None and target in class_names:
        return list(class_names).index(target)
    try:
        index = int(target)
    except ValueError:
        if class_names is None:
            raise InputError(
                f"target {target!r}: this model has no class names; give top1 or an index 0…{num_classes - 1}"
            ) from None
        raise InputError(
            f"no class named {target!r}{close_names(target, class_names)}; "
            f"give top1, a name, or an index 0…{num_classes - 1}"
        ) from None
    if not 0 <= index < num_classes:
        raise InputError(f"target must be top1 or lie in 0…{num_classes - 1}, got {index}")
    return index


def class_name(index: int, class_names: Sequence[str] | None) -> str:
    """Return what a class is called."""
    return class_names[index] if class_names else f"class {index}"
