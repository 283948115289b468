"""Arrays -> TrainingExamples frames, without a Python list per row; and the account of what went in.

Shapes: N rows, L positions of the response, T tokens of all rows together.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from core.corruption.responses import Prompts
from core.errors import InputError
from data_contracts import Rejects, TokenKind, TrainingExamples

REJECT_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "row_id": pl.String,
    "outcome": Rejects.outcome.dtype,
    "reason": pl.String,
    "detail": pl.String,
}


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """What a corruption gave: `examples` (TrainingExamples) and `rejects` (row_id, outcome, reason, detail).

    `rows_in` counts the input rows, each function says of which tables; rows_in = rows_ok + one row of `rejects` each.
    An input row that is ok gives `draws` examples, or is a pair that examples may carry.
    """

    examples: pl.DataFrame
    rejects: pl.DataFrame
    rows_in: int
    rows_ok: int


@dataclass(frozen=True, kw_only=True)
class ResponseArrays:
    """The response part of N rows. `regions_NL` is -1 where a token speaks of no image region."""

    input_NL: NDArray[np.int32]
    target_NL: NDArray[np.int32]
    kinds_NL: NDArray[np.int8]
    regions_NL: NDArray[np.int16]
    t_N: NDArray[np.float32]


def reject_frame(ids: list[str], reasons: list[str], details: list[str], *, outcome: str = "rejected") -> pl.DataFrame:
    """Rejects of one outcome."""
    columns = {"row_id": ids, "outcome": [outcome] * len(ids), "reason": reasons, "detail": [d[:500] for d in details]}
    return pl.DataFrame(columns, schema=REJECT_COLUMNS)


def assemble(meta: pl.DataFrame, prompts: Prompts, rows: ResponseArrays, *, recipe: str) -> pl.DataFrame:
    """Put prompts before responses and build the TrainingExamples frame.

    Args:
        meta: one row each with example_id, sample_id, image_sha, origin, round, parents and grounded (regions known).
        prompts: the rows' prompts; `index_N` has one entry a row.
        rows: the responses.
        recipe: one of data_contracts.training_examples.RECIPES.
    """
    n, response_length = rows.input_NL.shape
    prompt_lengths = np.array([len(ids) for ids in prompts.ids_P], dtype=np.int64)
    width = int(prompt_lengths.max(initial=0))
    table = np.zeros((len(prompts.ids_P), width), dtype=np.int32)
    for index, ids in enumerate(prompts.ids_P):
        table[index, : len(ids)] = ids
    prompt_NP = table[prompts.index_N]
    keep = np.ones((n, width + response_length), dtype=np.bool_)
    keep[:, :width] = np.arange(width)[None, :] < prompt_lengths[prompts.index_N][:, None]
    offsets = np.concatenate([[0], np.cumsum(keep.sum(axis=1))]).astype(np.int64)

    def column(prompt: NDArray[np.int32] | int, response: NDArray[np.generic]) -> pl.Series:
        head = np.broadcast_to(np.asarray(prompt, dtype=response.dtype), (n, width))
        whole = np.concatenate([head, response], axis=1)
        return list_series(whole.ravel() if keep.all() else whole[keep], offsets)

    grounded = meta["grounded"]
    frame = meta.with_columns(
        input_ids=column(prompt_NP, rows.input_NL),
        target_ids=column(prompt_NP, rows.target_NL),
        kinds=column(int(TokenKind.PROMPT), rows.kinds_NL),
        regions=column(-1, rows.regions_NL) if grounded.any() else pl.lit(None, dtype=pl.List(pl.Int16)),
        t=pl.Series(rows.t_N),
        recipe=pl.lit(recipe, dtype=TrainingExamples.recipe.dtype),
        history=pl.lit(None, dtype=TrainingExamples.history.dtype),
    )
    if grounded.any() and not grounded.all():
        frame = frame.with_columns(pl.when("grounded").then("regions").alias("regions"))
    return frame.select(pl.col(name).cast(dtype) for name, dtype in TrainingExamples.create_empty().schema.items())


def list_series(flat_T: NDArray[np.generic], offsets: NDArray[np.int64]) -> pl.Series:
    """A List column from all values one after another and N+1 offsets."""
    return pl.Series(pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat_T))))


def list_matrix(column: pl.Series) -> NDArray[np.int32]:
    """A List column of equally long rows as a matrix, (N, L).

    Raises:
        InputError: rows of different lengths.
    """
    lengths = column.list.len().unique().to_list()
    if len(lengths) > 1:
        raise InputError(f"{column.name} holds responses of different lengths: {sorted(lengths)[:5]}")
    width = lengths[0] if lengths else 0
    return column.explode().to_numpy().astype(np.int32).reshape(len(column), width)


def token_regions(grounding: pl.Series, start_NL: NDArray[np.int32], end_NL: NDArray[np.int32]) -> NDArray[np.int16]:
    """The image region of each token, -1 for none: that of the (last) grounding span that overlaps its chars.

    Args:
        grounding: per row a list of {start, end, region}, or null.
        start_NL: first char of each token, -1 past the text's end.
        end_NL: char after its last.
    """
    regions_NL = np.full(start_NL.shape, -1, dtype=np.int16)
    spans = pl.DataFrame({"row": np.arange(len(grounding)), "span": grounding}).filter(pl.col("span").list.len() > 0)
    spans = spans.explode("span").with_columns(pl.col("span").struct.unnest())
    if spans.height == 0:
        return regions_NL
    row, first, last = (spans[name].to_numpy() for name in ("row", "start", "end"))
    overlaps = (start_NL[row] < last[:, None]) & (end_NL[row] > first[:, None]) & (start_NL[row] >= 0)
    span, position = np.nonzero(overlaps)
    regions_NL[row[span], position] = spans["region"].to_numpy()[span]
    return regions_NL
