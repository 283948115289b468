"""What an export reads: the tables of a dataset, part by part, and the images they name."""

from collections.abc import Collection, Iterator
from typing import Protocol

import polars as pl

from data_contracts import Contract


class Source(Protocol):
    """A dataset (with those it was made from, where they are needed). Nothing is read before it is asked for."""

    @property
    def tables(self) -> Collection[str]:
        """Names of the tables that there are."""
        ...

    def frames(self, schema: type[Contract]) -> Iterator[pl.DataFrame]:
        """The parts of a table, in order; each call begins anew."""
        ...

    def image_bytes(self, sha: str) -> bytes:
        """The encoded image, as it came. Raises StoreError."""
        ...
