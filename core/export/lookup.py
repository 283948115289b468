"""Rows of a table by their id, on disk: a join of two tables that need not fit into memory."""

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl

from core.errors import InputError


class Lookup:
    """Some columns of a table by the values of its first one, in a temporary file that the end of the block removes.

    Example: with Lookup(frames, ("sample_id", "prompt")) as found: found.of(["s1"]) -> {"s1": {"prompt": "What?"}}
    """

    def __init__(self, frames: Iterable[pl.DataFrame], columns: Sequence[str]) -> None:
        self._frames, self._columns = frames, columns
        self._folder = tempfile.TemporaryDirectory(prefix="redraft-export-")
        self._db = sqlite3.connect(Path(self._folder.name) / "rows.sqlite")

    def __enter__(self) -> Self:
        key, *others = self._columns
        self._db.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE found (id TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;"
        )
        try:
            for frame in self._frames:
                rows = ((row.pop(key), json.dumps(row)) for row in frame.select(key, *others).iter_rows(named=True))
                self._db.executemany("INSERT OR REPLACE INTO found VALUES (?, ?)", rows)
        except sqlite3.OperationalError as error:
            raise InputError(f"cannot write to {self._folder.name}: {error}; free some space, or set TMPDIR") from error
        self._db.commit()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        self._folder.cleanup()

    def of(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The rows of some ids; an id that is not there is left out."""
        query = "SELECT id, value FROM found WHERE id IN (SELECT value FROM json_each(?))"
        return {key: json.loads(value) for key, value in self._db.execute(query, (json.dumps(list(ids)),))}
