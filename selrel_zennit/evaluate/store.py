"""Rows in append-only Parquet parts: what is there is not measured again, whoever wrote it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import atomic_path

Row = dict[str, Any]
Key = tuple[str, int, str, str, str]

# What names a row: the video's hash, the clip's start, the network, the method, the settings.
KEY = ("digest", "start", "network", "method", "settings")


class Store:
    """A folder of Parquet files, each written whole or not at all; many processes may write to one.

    Raises InputError where pyarrow is missing, or a part is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError:
            raise InputError("selrel evaluate needs pyarrow: pip install 'selrel-zennit[evaluate]'") from None
        self.folder = Path(folder)

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows as one more part."""
        import pyarrow
        import pyarrow.parquet

        if not rows:
            return
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
        with atomic_path(self.folder / f"part-{secrets.token_hex(8)}.parquet") as temporary:
            pyarrow.parquet.write_table(table, temporary)

    def parts(self) -> list[Path]:
        """Return the parts there are."""
        return sorted(self.folder.glob("part-*.parquet"))

    def keys(self) -> set[Key]:
        """Return the keys of all rows."""
        return {_key(row) for row in self._read(KEY)}

    def rows(self) -> list[Row]:
        """Return all rows, sorted by key, each key once; without what they do not hold."""
        found: dict[Key, Row] = {}
        for row in self._read(None):
            found.setdefault(_key(row), {name: value for name, value in row.items() if value is not None})
        return [found[key] for key in sorted(found)]

    def _read(self, columns: Sequence[str] | None) -> Iterable[Row]:
        import pyarrow
        import pyarrow.parquet

        for part in self.parts():
            try:
                with pyarrow.parquet.ParquetFile(part) as file:
                    yield from file.read(columns=columns).to_pylist()
            except (pyarrow.ArrowException, OSError) as error:
                raise InputError(f"{part} is damaged ({error}): remove it, and its clips are measured again") from None


def _key(row: Row) -> Key:
    digest, start, network, method, settings = (row[name] for name in KEY)
    return digest, start, network, method, settings
