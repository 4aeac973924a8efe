"""Outputs that appear whole or not at all, and the hash of a file. The standard library alone."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError

_REMEDY = "choose another place to write to"
# Ends the name of a staging folder that its process holds a lock on, for as long as it lives.
_LOCKED = ".staging"


@contextmanager
def staged_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder whose files move into ``out`` when the block ends without an exception.

    ``out`` and its parents are created then, not before. Files of the same name are replaced, others in ``out`` are
    left alone. When the block raises (KeyboardInterrupt too), ``out`` is as it was. Files may lie in subfolders. What
    a killed process has left of its own staging for ``out`` is removed.

    Raises InputError, before the block runs, where ``out`` is a file or cannot be written; and after it, with nothing
    moved, where a file would replace a folder or the other way round, or the disk is full.
    """
    out = Path(out)
    # Staging lies inside ``out`` where that exists: ``out`` may be a mount, and a move must stay on one file system.
    place = _writable_ancestor(out)
    # Beside ``out`` too: it may not have been there yet.
    for left in {place, out.parent}:
        _remove_left_behind(left, out.name)
    staging, lock = _make_temporary(place, out.name)
    try:
        with _full_disk_named(out, staging):
            yield staging
            _move_into(staging, out)
    finally:
        _discard(staging, lock)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path of the same suffix; it becomes ``path`` when the block ends without an exception.

    Missing parent folders are created then, an existing file is replaced. When the block raises, ``path`` is as it was.
    Raises InputError where ``path`` is a folder or cannot be written.
    """
    path = Path(path)
    temporary = _temporary_for(path)
    try:
        with _full_disk_named(path, temporary):
            yield temporary
            _make_folder(path.parent)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise InputError where ``atomic_path`` would: before long work, not after it. Nothing stays behind."""
    _temporary_for(Path(path)).unlink(missing_ok=True)


def check_folder(out: str | os.PathLike[str]) -> None:
    """Raise InputError where ``staged_folder`` would: before long work, not after it. Nothing stays behind."""
    out = Path(out)
    _discard(*_make_temporary(_writable_ancestor(out), out.name))


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


def _make_temporary(folder: Path, name: str) -> tuple[Path, int | None]:
    """Make a staging folder; return it, and the lock on it where there are locks."""
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; {_REMEDY}") from error
    lock = _lock(made)
    if lock is None:
        return made, None
    # Named so only now: nobody may take it for left behind before it is locked.
    return made.rename(made.with_name(made.name + _LOCKED)), lock


def _lock(folder: Path) -> int | None:
    """Return a lock on a folder, which ends with the process; None where another holds it, or there are no locks."""
    try:
        import fcntl
    except ImportError:  # on Windows; what a killed process leaves there stays
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_left_behind(place: Path, name: str) -> None:
    """Remove staging folders whose processes have ended without doing it: those on which the lock is free."""
    for folder in place.glob(f".{glob.escape(name)}-{'?' * 8}{_LOCKED}"):
        lock = _lock(folder)
        if lock is not None:
            _discard(folder, lock)


def _discard(folder: Path, lock: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)


@contextmanager
def _full_disk_named(target: Path, staged: Path) -> Iterator[None]:
    """Turn an error for want of room, wherever it comes from, into an InputError that says where and how much."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and getattr(cause, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        files = [staged] if staged.is_file() else [file for file in staged.rglob("*") if file.is_file()]
        written, free = sum(file.stat().st_size for file in files), 0
        with suppress(OSError):
            free = shutil.disk_usage(staged).free
        raise InputError(
            f"cannot write to {target}: the disk is full after {written / 1e6:.1f} MB, with {free / 1e6:.1f} MB free; "
            "make room, or choose another place to write to"
        ) from error


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
