"""The verb `export`: datasets of the store, written in a format that other tools read."""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl
from rich.console import Console

from core.config import RunConfig
from core.errors import ConfigError
from core.export.formats import export
from core.ingest.settings import ExportName
from core.manifest import Ref, read_manifest, read_parts
from data_contracts import TABLES, Contract
from flows.inspecting import find_ref
from flows.running import DONE, emit
from flows.session import workplace
from tasks.workplace import Workplace


@dataclass(frozen=True)
class StoredDatasets:
    """Some datasets of a store, and for tables that they do not hold the datasets that they were made from."""

    place: Workplace
    refs: Sequence[Ref]
    alone: bool
    """Do their own tables alone count?"""

    @cached_property
    def _holders(self) -> dict[str, list[Ref]]:
        """Table -> the datasets that it is read from: the nearest generation that has it."""
        found: dict[str, list[Ref]] = {}
        generation = list(dict.fromkeys(self.refs))
        while generation:
            parents: list[Ref] = []
            held: dict[str, list[Ref]] = {}
            for ref in generation:
                manifest = read_manifest(self.place.store, ref.uri)
                parents += [] if self.alone else [one for group in manifest.parents.values() for one in group]
                for table in {part.table for part in manifest.parts if part.table in TABLES and part.rows}:
                    held.setdefault(table, []).append(ref)
            found = held | found
            generation = list(dict.fromkeys(parents))
        return found

    @property
    def tables(self) -> Collection[str]:
        """Names of the tables that there are."""
        return self._holders

    def frames(self, schema: type[Contract]) -> Iterator[pl.DataFrame]:
        """The table's parts, in order."""
        return read_parts(self.place.store, self._holders.get(schema.table, []), schema)

    def image_bytes(self, sha: str) -> bytes:
        """An image's encoded bytes."""
        return self.place.image_bytes(sha)


def run_export(config: RunConfig, datasets: Sequence[str], name: ExportName, out: Path, *, json: bool) -> int:
    """Write the datasets to `out`."""
    if not datasets:
        raise ConfigError("name the datasets to export: their folders in the store, or the beginnings of their digests")
    started, place = time.monotonic(), workplace(config.place)
    refs = [find_ref(place.store, dataset) for dataset in datasets]
    rows = export(StoredDatasets(place, refs, alone=name == "parquet"), name, out)
    Console().print(f"{rows:,} rows -> {out}", highlight=False, soft_wrap=True)
    if json:
        seconds = round(time.monotonic() - started, 1)
        emit({"verb": "export", "outputs": [str(out)], "counts": {"ok": rows}, "seconds": seconds})
    return DONE
