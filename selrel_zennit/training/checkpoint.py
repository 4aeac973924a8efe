"""The files of a training: weights that say what they are for, the log, and the checkpoint it goes on from."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from ..clips.spec import ClipSpec
from ..errors import InputError
from ..files import atomic_path
from ..models.weights import CARD

BEST, LAST, CHECKPOINT = "best.safetensors", "last.safetensors", "checkpoint.pt"
LOG, CURVES = "training.json", "curves.png"


def prepare_folder(out: Path) -> None:
    """Make the folder, before long work, and remove what a killed training has left half-written in it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; choose another --out") from error
    for name in map(Path, (BEST, LAST, CHECKPOINT, LOG, CURVES)):
        for left in out.glob(f".{name.stem}-????????{name.suffix}"):
            left.unlink(missing_ok=True)


def save_weights(network: nn.Module, path: Path, spec: ClipSpec, classes: tuple[str, ...], model: str) -> None:
    """Write weights as safetensors; an entry of the file says what clips and classes they are for."""
    card = {CARD: json.dumps({"model": model, "spec": spec.to_dict(), "classes": list(classes)})}
    # Copied: tensors that share their memory are refused.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=card))


def write_log(path: Path, values: dict[str, Any]) -> None:
    """Write the log, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_checkpoint(path: Path, settings: dict[str, Any], values: dict[str, Any]) -> None:
    """Write where a training stands: state dicts, numbers and lists."""
    with atomic_path(path) as temporary:
        torch.save({"settings": json.dumps(settings), **values}, temporary)


def read_checkpoint(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return what ``write_checkpoint`` wrote, None where there is nothing.

    Raises InputError for a damaged file, and for one of a training with other settings.
    """
    if not path.exists():
        return None
    try:
        kept: dict[str, Any] = torch.load(path, weights_only=True)
        before = json.loads(kept["settings"])
    except (OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise InputError(f"{path} is no checkpoint of a training: remove it to begin anew") from error
    other = [key for key in settings if before.get(key) != settings[key]]
    if other:
        raise InputError(
            f"{path} belongs to another training, with other {', '.join(other)}: choose another --out, "
            "or remove it to begin anew"
        )
    return kept
