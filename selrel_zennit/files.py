"""Outputs that appear whole or not at all, and the hash of a file. The standard library alone."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

_REMEDY = "choose another place to write to"


@contextmanager
def staged_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder whose files move into ``out`` when the block ends without an exception.

    ``out`` and its parents are created then, not before. Files of the same name are replaced, others in ``out`` are
    left alone. When the block raises (KeyboardInterrupt too), ``out`` is as it was. Files may lie in subfolders.

    Raises InputError, before the block runs, where ``out`` is a file or cannot be written; and after it, with nothing
    moved, where a file would replace a folder or the other way round.
    """
    out = Path(out)
    # Staging lies inside ``out`` where that exists: ``out`` may be a mount, and a move must stay on one file system.
    staging = Path(_make_temporary(_writable_ancestor(out), out.name))
    try:
        yield staging
        _move_into(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path of the same suffix; it becomes ``path`` when the block ends without an exception.

    Missing parent folders are created then, an existing file is replaced. When the block raises, ``path`` is as it was.
    Raises InputError where ``path`` is a folder or cannot be written.
    """
    path = Path(path)
    temporary = _temporary_for(path)
    try:
        yield temporary
        _make_folder(path.parent)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise InputError where ``atomic_path`` would: before long work, not after it. Nothing stays behind."""
    _temporary_for(Path(path)).unlink(missing_ok=True)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, reading it in pieces. Raises OSError as ``open`` does."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _temporary_for(path: Path) -> Path:
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file; {_REMEDY}")
    temporary = _writable_ancestor(path.parent) / f".{path.stem}-{secrets.token_hex(4)}{path.suffix}"
    try:
        # Some file systems refuse only when something is made.
        temporary.touch()
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}; {_REMEDY}") from error
    return temporary


def _writable_ancestor(folder: Path) -> Path:
    """Return ``folder`` or, where it does not exist, the nearest parent that does."""
    for place in (folder, *folder.parents):
        # A dangling link counts as existing: a folder cannot be made in its place.
        if os.path.lexists(place):
            break
    if not place.is_dir():
        raise InputError(f"cannot write to {folder}: {place} is not a folder; {_REMEDY}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {folder}: no permission to write in {place}; {_REMEDY}")
    return place


def _make_temporary(folder: Path, name: str) -> str:
    try:
        return tempfile.mkdtemp(prefix=f".{name}-", dir=folder)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; {_REMEDY}") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}; {_REMEDY}") from error


def _move_into(staging: Path, out: Path) -> None:
    files = [file.relative_to(staging) for file in sorted(staging.rglob("*")) if not file.is_dir()]
    for file in files:
        if (out / file).is_dir():
            raise InputError(f"cannot write {out / file}: a folder of that name is there; {_REMEDY}")
    for folder in sorted({out, *(out / file.parent for file in files)}):
        _make_folder(folder)
    for file in files:
        os.replace(staging / file, out / file)
