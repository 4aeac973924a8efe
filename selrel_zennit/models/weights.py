"""Weight files: safetensors and PyTorch's own, read as tensors alone and checked. Nothing is ever unpickled."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from ..errors import InputError
from ..text import one_line

# The entry of a safetensors file's metadata in which a training says what the weights are for.
CARD = "selrel"
_CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net")
# What DataParallel and torch.compile put before every key of the network they wrap.
_WRAPPERS = ("module.", "_orig_mod.")
_TAR_MAGIC, _TAR_OFFSET = b"ustar", 257
_HEAD_BYTES = 512


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a weight file by name, on the CPU; floating ones as float32.

    Reads safetensors, and what ``torch.save`` wrote, through ``torch.load(weights_only=True)``: code in a pickle is
    refused, never run. Training checkpoints are unwrapped (``state_dict``, ``model_state_dict``, ``model_state``,
    ``model``, ``net``), and so are keys that DataParallel or ``torch.compile`` prefixed.

    Raises InputError for a file that is missing, empty, damaged or truncated, that is no weight file or a Git LFS
    pointer, that holds anything but tensors, and for NaN or infinity in a tensor.
    """
    path = Path(path)
    return checked_state(_load_safetensors(path) if _is_safetensors(path) else _load_torch(path), path)


def read_card(path: str | Path) -> dict[str, Any]:
    """Return what a weight file of ``selrel train`` says of itself: model, spec (as ClipSpec.to_dict), classes.

    {} for any other file. Raises InputError where the entry is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not _is_safetensors(path):
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(CARD)
    except SafetensorError:
        return {}  # reading its tensors says so
    try:
        card: dict[str, Any] = json.loads(text) if text else {}
        return card
    except ValueError as error:
        raise InputError(f"{path}: its entry {CARD!r} is no JSON ({error}); train it again") from None


def checked_state(loaded: Any, path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a state dict, or of a checkpoint that holds one, as ``read_weights`` does.

    ``path`` is what the messages call it. Raises InputError as ``read_weights`` does.
    """
    state = _unwrap_keys(_unwrap_container(loaded, path))
    return {key: _checked(key, value, path) for key, value in state.items()}


def common_prefixes(keys: Iterable[str]) -> list[str]:
    """Return what all keys begin with, up to each of its dots, the shortest first: "net.", "net.model.", …"""
    ordered = sorted(keys)
    if not ordered:
        return []
    first, last = ordered[0], ordered[-1]  # what these two begin with, all between them do
    ends = [index + 1 for index, letter in enumerate(first) if letter == "."]
    return [first[:end] for end in ends if last.startswith(first[:end])]


def renamed_to_fit(
    state: dict[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], str | None]:
    """Return ``state`` with keys of ``expected``, and what was done to them; as it is where no prefix makes it fit.

    A prefix that all keys have (the attribute that held the network, as Lightning writes it) is taken off, or the one
    that all keys of the network have is put in front.
    """
    if any(key in expected for key in state):
        return state, None
    for prefix in common_prefixes(state):
        shorter = {key.removeprefix(prefix): value for key, value in state.items()}
        if any(key in expected for key in shorter):
            return shorter, f"{prefix!r} taken off all keys"
    for prefix in common_prefixes(expected):
        longer = {prefix + key: value for key, value in state.items()}
        if any(key in expected for key in longer):
            return longer, f"{prefix!r} put in front of all keys"
    return state, None


def with_counters(state: dict[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return ``state`` with the counters of batch norms, which files from before PyTorch 0.4.1 do not hold: zeros.

    They count training steps, and no evaluation reads them.
    """
    counters = {key: torch.zeros_like(value) for key, value in expected.items() if key.endswith("num_batches_tracked")}
    if any(key in state for key in counters):
        return state  # a file that holds some of them has lost the others
    return {**counters, **state}


def check_state(
    state: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    path: str | Path,
    num_classes: int | None = None,
) -> None:
    """Raise InputError unless ``state`` has exactly the keys and shapes of ``expected``, a network's state dict.

    A class layer that is absent, or made for another number of classes than ``num_classes``, is said as such.
    """
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    misshapen = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    head = _module(list(expected)[-1]) if expected else ""
    if missing and not unexpected and not misshapen and {_module(key) for key in missing} == {head}:
        raise InputError(
            f"{path} has no class layer ({head}): it is a backbone; pass a file fine-tuned to your classes"
        )
    found = _other_classes(state, expected, misshapen)
    if found is not None and not missing and not unexpected:
        held, asked = found
        if num_classes in (None, asked):
            raise InputError(
                f"{path} holds {held} classes, the model was asked for {asked}: "
                f"pass --num-classes {held} (in Python num_classes={held})"
            )
    shapes = [f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}" for key in misshapen]
    faults = [
        f"{what} {_some(names)}"
        for what, names in (("missing:", missing), ("not of this network:", unexpected), ("of another shape:", shapes))
        if names
    ]
    if faults:
        raise InputError(
            f"{path} does not fit the model; {'; '.join(faults)}; pass the file that belongs to this network"
        )


def _other_classes(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], misshapen: Sequence[str]
) -> tuple[int, int] | None:
    """Return (classes held, classes asked for) where the one misfit is the length of the last layer."""
    if not misshapen or {_module(key) for key in misshapen} != {_module(list(expected)[-1])}:
        return None
    if any(state[key].ndim == 0 or state[key].shape[1:] != expected[key].shape[1:] for key in misshapen):
        return None
    return state[misshapen[0]].shape[0], expected[misshapen[0]].shape[0]


def _module(key: str) -> str:
    return key.rpartition(".")[0]


def _some(names: Sequence[str], at_most: int = 3) -> str:
    rest = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {rest} more" if rest > 0 else "")


def _is_safetensors(path: Path) -> bool:
    """Tell the two kinds of weight files apart by their first bytes. Raises InputError for anything else."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: pass a .safetensors, .pt or .pth file as weights") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): pass a readable weight file") from None
    if not head:
        raise InputError(f"{path} is empty: download or save it again")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` where it came from")
    if head[_TAR_OFFSET:].startswith(_TAR_MAGIC):
        raise InputError(
            f"{path} is a tar file, PyTorch's format before 0.1.10, which cannot be read without unpickling: "
            "save its tensors as safetensors where you trust it"
        )
    # The format: the length of the header, at most 100 MB, little-endian in 8 bytes, then the header, a JSON object. It
    # is looked for first: that length may begin with the byte that begins a pickle.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000:
        return True
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return False
    if path.suffix == ".safetensors":
        return True
    raise InputError(f"{path} is not a weight file: pass safetensors, or what torch.save wrote of a state dict")


def _load_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is damaged, truncated or not safetensors ({one_line(error, 120)}): download or save it again"
        ) from None
    return tensors


def _load_torch(path: Path) -> Any:
    try:
        # An open file: given a path, newer versions of PyTorch judge it by its suffix.
        with path.open("rb") as file, warnings.catch_warnings():
            # PyTorch announces that it hands a TorchScript file to another loader, and then refuses to.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        what = f"Python objects or code ({refused[1]})" if refused else "something other than tensors, or is damaged"
        raise InputError(
            f"{path} holds {what} and is not unpickled: where you trust it, save its state dict alone, as safetensors"
        ) from None
    except Exception as error:  # damaged bytes end in errors of any type
        if "TorchScript" in str(error):
            raise InputError(f"{path} is a TorchScript program: save its state_dict() and pass that") from None
        raise InputError(
            f"{path} is damaged, truncated or no file of PyTorch ({one_line(error, 120)}): download or save it again"
        ) from None


def _unwrap_container(loaded: Any, path: str | Path) -> Mapping[str, Any]:
    while isinstance(loaded, Mapping):
        inner = next((loaded[name] for name in _CONTAINERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping) or not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{path} holds no tensors by name, but {_describe(loaded)}: pass a state dict")
    return loaded


def _describe(loaded: Any) -> str:
    if not isinstance(loaded, Mapping):
        return f"a {type(loaded).__name__}"
    return f"a dict of {_some([str(key) for key in loaded])}" if loaded else "an empty dict"


def _unwrap_keys(state: Mapping[str, Any]) -> Mapping[str, Any]:
    for wrapper in _WRAPPERS:
        if all(isinstance(key, str) and key.startswith(wrapper) for key in state):
            return _unwrap_keys({key.removeprefix(wrapper): value for key, value in state.items()})
    return state


def _checked(key: Any, value: Any, path: str | Path) -> torch.Tensor:
    if not isinstance(key, str) or not isinstance(value, torch.Tensor):
        raise InputError(f"{path}: {key!r} holds a {type(value).__name__}, not a tensor; save the state dict alone")
    if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
        raise InputError(f"{path}: {key} is not a dense tensor of real numbers; save it dense, as float32")
    tensor: torch.Tensor = value.detach()
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.float()
    # The extremes carry NaN and infinity, and need no second copy of a layer with 33 million weights.
    if tensor.numel() and not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor)):
        raise InputError(
            f"{path}: {key} holds NaN or infinity; the training diverged or the file is damaged: use another"
        )
    return tensor
