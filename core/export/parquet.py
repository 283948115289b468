"""The tables of a dataset as plain Parquet: one file for each, which polars, pandas, DuckDB and datasets open.

Columns keep their names and types, except that words from a fixed list (a split, a verdict) become strings.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import InputError
from core.export.files import writing
from core.export.source import Source
from data_contracts import TABLES, Contract


def write(source: Source, target: Path) -> int:
    """Write `target` itself if it is called .parquet, else `target`/TABLE.parquet for each table; returns all rows.

    Raises:
        InputError: one file is asked for, and there are several tables.
    """
    tables = [name for name in TABLES if name in source.tables]
    if target.suffix.lower() != ".parquet":
        return sum(_write_table(source, TABLES[name], target / f"{name}.parquet") for name in tables)
    if len(tables) != 1:
        raise InputError(f"this dataset has the tables {', '.join(tables)}: give a folder, not the file {target}")
    return _write_table(source, TABLES[tables[0]], target)


def _write_table(source: Source, schema: type[Contract], path: Path) -> int:
    count, empty = 0, plain(schema.create_empty())
    with writing(path) as file, pq.ParquetWriter(file, empty.schema, compression="zstd") as writer:
        for table in _tables(source, schema):
            writer.write_table(table.cast(empty.schema))
            count += table.num_rows
    return count


def _tables(source: Source, schema: type[Contract]) -> Iterator[pa.Table]:
    for frame in source.frames(schema):
        if frame.height:
            yield plain(frame.select(schema.column_names()))


def plain(frame: pl.DataFrame) -> pa.Table:
    """The rows as Arrow, without types that only some readers know: an Enum becomes a string."""
    return frame.cast({pl.Enum: pl.String, pl.Categorical: pl.String}).to_arrow(compat_level=pl.CompatLevel.oldest())
