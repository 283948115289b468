"""What every contract shares: a name, a version, and the split of good rows from bad ones."""

from typing import BinaryIO, ClassVar, NamedTuple

import dataframely as dy
import polars as pl
import pyarrow.parquet as pq


class Contract(dy.Schema):
    """A table's schema. `table` and `version` are written into the metadata of each Parquet file."""

    table: ClassVar[str] = ""
    version: ClassVar[int] = 1
    id_column: ClassVar[str] = "sample_id"


class RowFailure(NamedTuple):
    """A row that breaks its contract: (`row_id`, `reason`), the reason being the first rule it broke."""

    row_id: str
    reason: str


def split_rows(schema: type[Contract], frame: pl.DataFrame) -> tuple[pl.DataFrame, list[RowFailure]]:
    """Split `frame` into the rows that keep the contract and one `RowFailure` for each row that does not.

    Raises:
        dataframely.exc.SchemaError: if a column is missing or has the wrong type (a fault of the code, not of a row).
    """
    good, failure = schema.filter(frame)
    if len(failure) == 0:
        return good, []
    details = failure.details()
    rules = [name for name in details.columns if name not in schema.column_names()]
    broken = details.select(
        pl.col(schema.id_column).cast(pl.String).fill_null("?"),
        pl.coalesce(
            *(pl.when(pl.col(rule) == "invalid").then(pl.lit(rule)) for rule in rules), pl.lit("contract")
        ).alias("reason"),
    )
    return good, [RowFailure(row_id, f"contract:{reason}") for row_id, reason in broken.iter_rows()]


def contract_of(parquet: BinaryIO) -> tuple[str, int] | None:
    """The (table, version) that a Parquet file's metadata carries, or None for a file that is not ours."""
    metadata = pq.read_metadata(parquet).metadata or {}
    if b"redraft.contract" not in metadata:
        return None
    return metadata[b"redraft.contract"].decode(), int(metadata[b"redraft.version"])
