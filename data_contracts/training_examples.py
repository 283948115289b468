"""What the model sees in training: corruption is materialised, training only reads."""

from typing import ClassVar

import dataframely as dy
import polars as pl

from data_contracts.contract import Contract

RECIPES = ("mask", "revision", "refine")
ORIGINS = ("caption", "pair", "draft")


class TrainingExamples(Contract):
    """One row as the model sees it: prompt and response ids, what each should become, and what each is.

    input_ids, target_ids and kinds have equal length. The loss weight of each token is computed at collation from
    kinds, t and recipe (see core.objectives).
    """

    table: ClassVar[str] = "training_examples"
    id_column: ClassVar[str] = "example_id"

    example_id = dy.String(primary_key=True)
    sample_id = dy.String()
    image_sha = dy.String(nullable=True)
    input_ids = dy.List(dy.Int32(), min_length=1)
    target_ids = dy.List(dy.Int32(), min_length=1)
    kinds = dy.List(dy.Int8(), min_length=1, description="data_contracts.TokenKind")
    regions = dy.List(dy.Int16(), nullable=True, description="image region each visible token speaks of; -1: none")
    t = dy.Float32(min=0.0, max=1.0, description="noise level")
    recipe = dy.Enum(RECIPES)
    origin = dy.Enum(ORIGINS)
    round = dy.Int16(min=0)
    history = dy.List(dy.List(dy.Int32()), nullable=True, description="earlier states of the row, oldest first")
    parents = dy.List(dy.String(), description="ids of the rows it was made from")

    @dy.rule()
    def equal_lengths(cls) -> pl.Expr:
        """Every token has an input, a target and a kind."""
        length = cls.input_ids.col.list.len()
        return (length == cls.target_ids.col.list.len()) & (length == cls.kinds.col.list.len())
