"""ViCrit-style pairs: a caption and the same caption with exactly one fact made wrong."""

from typing import ClassVar

import dataframely as dy
import polars as pl

from data_contracts.contract import Contract

PAIR_KINDS = ("object", "attribute", "count", "place", "relation")


class HallucinationPairs(Contract):
    """One injected hallucination a row.

    `changed_caption` is `original_caption` with the chars [start, end) ("solution_original") replaced by
    `solution_target`, e.g. "a red ring" -> "a blue ring": start 2, end 5, solution_target "blue".
    """

    table: ClassVar[str] = "hallucination_pairs"
    id_column: ClassVar[str] = "pair_id"

    pair_id = dy.String(primary_key=True)
    sample_id = dy.String()
    kind = dy.Enum(PAIR_KINDS, nullable=True, description="what was made wrong; null: its source does not say")
    original_caption = dy.String(min_length=1)
    changed_caption = dy.String(min_length=1)
    solution_original = dy.String()
    solution_target = dy.String()
    start = dy.Int32(min=0)
    end = dy.Int32(min=0)

    @dy.rule()
    def caption_changes(cls) -> pl.Expr:
        """A pair that changes nothing is no pair."""
        return cls.original_caption.col != cls.changed_caption.col
