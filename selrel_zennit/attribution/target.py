"""Targets: the class that is explained, as an index, a name, or "top1"."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..class_names import class_index
from ..errors import InputError

Target = int | str | Sequence[int] | Sequence[str] | torch.Tensor | None


def one_hot(target: int | Sequence[int] | torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return the output attribution of a class: float32 [B,K], 1 at the target (Hiley et al. 2020), 0 elsewhere.

    ``target`` is one index, or one per clip. Raises InputError outside 0…K−1.
    """
    indices = torch.as_tensor(target).reshape(-1)
    if indices.is_floating_point() or indices.dtype == torch.bool:
        raise InputError(f"a target must be a whole number, got {target!r}")
    if indices.numel() == 0 or int(indices.min()) < 0 or int(indices.max()) >= num_classes:
        raise InputError(
            f"target must lie in 0…{num_classes - 1}, got {target if isinstance(target, int) else indices.tolist()}"
        )
    classes = torch.arange(num_classes, device=indices.device)
    return (classes == indices[:, None]).to(torch.float32)


def resolve_target(target: Target, logits: torch.Tensor, class_names: Sequence[str] | None = None) -> torch.Tensor:
    """Return the class indices that ``target`` means for ``logits`` [B,K]: int64 [B], on the logits' device.

    ``target`` is "top1", None or -1 (each clip's own top class), an index, a decimal string, a name of ``class_names``,
    or one index or name per clip. Raises InputError for a name or index that does not exist.
    """
    batch, num_classes = logits.shape
    if target is None:
        target = "top1"
    if isinstance(target, str):
        target = class_index(target, num_classes, class_names)
    elif isinstance(target, Sequence) and any(isinstance(one, str) for one in target):
        return _each_named(target, logits, class_names)
    if isinstance(target, int) and target == -1:
        return logits.argmax(1)
    chosen = torch.as_tensor(target, device=logits.device).reshape(-1)
    one_hot(chosen, num_classes)  # checks the range
    if chosen.numel() not in (1, batch):
        raise InputError(f"{chosen.numel()} targets for {batch} clips: give one, or one per clip")
    return chosen.to(torch.int64).expand(batch)


def _each_named(target: Sequence[int | str], logits: torch.Tensor, class_names: Sequence[str] | None) -> torch.Tensor:
    """Return the class of each clip, where names stand among the targets."""
    batch, num_classes = logits.shape
    if len(target) not in (1, batch):
        raise InputError(f"{len(target)} targets for {batch} clips: give one, or one per clip")
    chosen = [class_index(one, num_classes, class_names) if isinstance(one, str) else one for one in target]
    indices = torch.as_tensor(chosen, device=logits.device).expand(batch)
    indices = torch.where(indices == -1, logits.argmax(1), indices)
    one_hot(indices, num_classes)  # checks the range
    return indices.to(torch.int64)
