"""Arrays -> TrainingExamples frames, without a Python list per row; and the account of what went in.

Shapes: N rows, L positions of the response, T tokens of all rows together.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from core.corruption.blocks import over_blocks
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
    """The response part of N rows. `regions_NL` is -1 where a token speaks of no region; None: no row's are known."""

    input_NL: NDArray[np.int32]
    target_NL: NDArray[np.int32]
    kinds_NL: NDArray[np.int8]
    regions_NL: NDArray[np.int16] | None
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
    columns = _columns(prompts, rows)
    grounded = meta["grounded"]
    frame = meta.with_columns(
        input_ids=columns["input_ids"],
        target_ids=columns["target_ids"],
        kinds=columns["kinds"],
        regions=columns["regions"] if grounded.any() else pl.lit(None, dtype=pl.List(pl.Int16)),
        t=pl.Series(rows.t_N),
        recipe=pl.lit(recipe, dtype=TrainingExamples.recipe.dtype),
        history=pl.lit(None, dtype=TrainingExamples.history.dtype),
    )
    if grounded.any() and not grounded.all():
        frame = frame.with_columns(pl.when("grounded").then("regions").alias("regions"))
    return frame.select(pl.col(name).cast(dtype) for name, dtype in TrainingExamples.create_empty().schema.items())


def _columns(prompts: Prompts, rows: ResponseArrays) -> dict[str, pl.Series]:
    """The List columns: the prompt's tokens, then the response's. Kind and region of a prompt are PROMPT and -1."""
    n, response_length = rows.input_NL.shape
    prompt_T = np.concatenate([np.zeros(0, dtype=np.int32), *prompts.ids_P])
    length_P = np.array([len(ids) for ids in prompts.ids_P], dtype=np.int64)
    length_N, first_N = length_P[prompts.index_N], (np.cumsum(length_P) - length_P)[prompts.index_N]
    offsets = np.concatenate([[0], np.cumsum(length_N + response_length)]).astype(np.int64)
    parts: dict[str, tuple[NDArray[np.int32] | int, NDArray[np.generic]]] = {
        "input_ids": (prompt_T, rows.input_NL),
        "target_ids": (prompt_T, rows.target_NL),
        "kinds": (int(TokenKind.PROMPT), rows.kinds_NL),
    }
    if rows.regions_NL is not None:
        parts["regions"] = (-1, rows.regions_NL)
    flat = {name: np.empty(offsets[-1], dtype=response.dtype) for name, (_, response) in parts.items()}

    def fill(block: slice) -> None:
        begin, end = offsets[block.start], offsets[block.stop]
        length = length_N[block]
        before = np.cumsum(length) - length
        source = np.arange(int(length.sum())) + np.repeat(first_N[block] - before, length)
        runs = np.stack([length, np.full_like(length, response_length)], axis=1).ravel()
        of_response = np.repeat(np.tile([False, True], len(length)), runs)
        of_prompt = ~of_response
        for name, (prompt, response) in parts.items():
            whole = flat[name][begin:end]
            whole[of_prompt] = prompt if isinstance(prompt, int) else prompt[source]
            whole[of_response] = response[block].ravel()

    over_blocks(n, response_length + int(length_N.max(initial=0)), fill)
    return {name: list_series(values, offsets) for name, values in flat.items()}


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


def visible_regions(
    regions_NL: NDArray[np.int16] | None, kinds_RL: NDArray[np.int8], draws: int
) -> NDArray[np.int16] | None:
    """The regions of `draws` rows a sample, next to each other: where a token is not CLEAN, none (-1)."""
    if regions_NL is None:
        return None
    return np.where(kinds_RL == TokenKind.CLEAN, np.repeat(regions_NL, draws, axis=0), np.int16(-1))


def token_regions(grounding: pl.Series, start_NL: NDArray[np.int32], end_NL: NDArray[np.int32]) -> NDArray[np.int16]:
    """The image region of each token, -1 for none: that of the (last) grounding span that overlaps its chars.

    Args:
        grounding: per row a list of {start, end, region}, or null.
        start_NL: first char of each token, -1 past the text's end.
        end_NL: char after its last.
    """
    regions_NL = np.full(start_NL.shape, -1, dtype=np.int16)
    spans = pl.DataFrame({"row": np.arange(len(grounding)), "span": grounding}).filter(pl.col("span").list.len() > 0)
    if spans.height == 0:
        return regions_NL
    spans = spans.explode("span").with_columns(pl.col("span").struct.unnest())
    row, first, last = (spans[name].to_numpy() for name in ("row", "start", "end"))
    overlaps = (start_NL[row] < last[:, None]) & (end_NL[row] > first[:, None]) & (start_NL[row] >= 0)
    span, position = np.nonzero(overlaps)
    regions_NL[row[span], position] = spans["region"].to_numpy()[span]
    return regions_NL
