"""Samples and their pairs in parts: what is in memory at once depends on the part, not on the data."""

from collections.abc import Iterator

import polars as pl

SAMPLES_A_PART = 2**16
"""With four draws of 128 tokens each: half a gigabyte at the peak."""


def in_parts(
    samples: pl.DataFrame, pairs: pl.DataFrame, *, size: int = SAMPLES_A_PART
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """`size` Samples rows at a time, in order, with their HallucinationPairs; pairs of no sample go with the first.

    There is always one part, and where all samples fit into one it is `samples` and `pairs` as they are.
    """
    if samples.height <= size:
        yield samples, pairs
        return
    part_of = samples.select("sample_id").with_row_index("part").with_columns(pl.col("part") // size)
    owners = pairs.select("sample_id").join(part_of, on="sample_id", how="left", maintain_order="left")["part"]
    for part in range(-(-samples.height // size)):
        yield samples.slice(part * size, size), pairs.filter(owners.fill_null(0) == part)
