"""What an ingestion keeps on disk beside its output: memory stays flat, and images are looked at once.

A run that is taken up again finds here what became of every image that was looked at; rows are read anew.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple


class ImageFate(NamedTuple):
    """What became of an image: the sha256 it is stored under, or why it cannot be used."""

    sha: str | None
    reason: str = ""
    detail: str = ""


class Notebook:
    """A SQLite file in the work folder (":memory:" for none) that one thread of one process writes."""

    def __init__(self, path: Path | None = None) -> None:
        self._db = sqlite3.connect(":memory:" if path is None else path, check_same_thread=False)
        self._db.executescript(
            """
            PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -65536;
            CREATE TABLE IF NOT EXISTS images (image TEXT PRIMARY KEY, sha TEXT, reason TEXT, detail TEXT);
            DROP TABLE IF EXISTS seen;
            CREATE TABLE seen (digest INTEGER PRIMARY KEY);
            """
        )

    def fates(self, images: Iterable[str]) -> dict[str, ImageFate]:
        """What is known of some images."""
        query = "SELECT image, sha, reason, detail FROM images WHERE image IN (SELECT value FROM json_each(?))"
        return {image: ImageFate(*fate) for image, *fate in self._db.execute(query, (json.dumps(list(images)),))}

    def note(self, fates: Mapping[str, ImageFate]) -> None:
        """Keep what became of some images; it outlives a kill."""
        rows = ((image, *fate) for image, fate in fates.items())
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)", rows)

    def unseen(self, digests: Iterable[int]) -> set[int]:
        """Those of the 63-bit digests that were never given before; from now on they have been."""
        query = "INSERT INTO seen SELECT value FROM json_each(?) WHERE true ON CONFLICT DO NOTHING RETURNING digest"
        with self._db:
            return {digest for (digest,) in self._db.execute(query, (json.dumps(list(digests)),))}

    def close(self) -> None:
        """Close the file."""
        self._db.close()
