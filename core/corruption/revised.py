"""Drafts joined with their revisions: which can be learned from, and what each should have been.

Shapes: N usable drafts, L positions of the response.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.corruption.rows import REJECT_COLUMNS, list_matrix, reject_frame
from core.corruption.settings import RefineScope


@dataclass(frozen=True, kw_only=True)
class Revised:
    """Usable drafts with their revisions' columns, draft and target ids, and the account of all others."""

    frame: pl.DataFrame
    draft_NL: NDArray[np.int32]
    target_NL: NDArray[np.int32]
    rejects: pl.DataFrame
    rows_in: int


def read_revised(
    drafts: pl.DataFrame, revisions: pl.DataFrame, eos: int, *, scope: RefineScope, keep_partial: bool
) -> Revised:
    """Join Drafts and Revisions. A row in is a draft, or a revision without one.

    Rejects: no_revision, no_draft, empty_draft (which the expert was not asked about), expert_failed (outcome failed),
    expert_unusable, wrong_length (draft and target differ in length), no_mistake (scopes `mistakes` and `full`),
    partly_aligned (scopes `response` and `full`, unless `keep_partial`).

    Raises:
        InputError: drafts of different response lengths.
    """
    of_expert = revisions.select("draft_id", "verdict", "target_ids", "refined_text", "error", _segment_reasons())
    joined = drafts.join(of_expert, on="draft_id", how="left", maintain_order="left")
    joined = joined.with_columns(reason=_reason(scope, keep_partial=keep_partial))
    orphans = revisions.join(drafts, on="draft_id", how="anti")["draft_id"].to_list()
    usable = joined.filter(pl.col("reason").is_null())
    refused = joined.filter(pl.col("reason").is_not_null()).select(
        row_id="draft_id",
        outcome=pl.when(pl.col("reason") == "expert_failed").then(pl.lit("failed")).otherwise(pl.lit("rejected")),
        reason="reason",
        detail=pl.coalesce(_cause(), pl.col("segment_reasons").list.join(", "), pl.lit("")).str.slice(0, 500),
    )
    refused = refused.select(pl.col(name).cast(dtype) for name, dtype in REJECT_COLUMNS.items())
    draft_NL, target_NL = list_matrix(usable["token_ids"]), list_matrix(usable["target_ids"])
    is_eos_NL = target_NL == eos
    return Revised(
        frame=usable,
        draft_NL=draft_NL,
        target_NL=np.where(np.cumsum(is_eos_NL, axis=1) > 0, np.int32(eos), target_NL),
        rejects=pl.concat([refused, reject_frame(orphans, ["no_draft"] * len(orphans), [""] * len(orphans))]),
        rows_in=drafts.height + len(orphans),
    )


def _reason(scope: RefineScope, *, keep_partial: bool) -> pl.Expr:
    """Why a draft cannot be used; null: it can."""
    verdict = pl.col("verdict")
    no_mistake = (verdict == "right") & (scope != "response")
    partly = (pl.col("segment_reasons").list.len() > 0) & (scope != "mistakes") & (not keep_partial)
    return (
        pl.when(verdict.is_null()).then(pl.lit("no_revision"))
        .when((verdict == "failed") & (pl.col("error") == "empty_draft")).then(pl.lit("empty_draft"))
        .when(verdict == "failed").then(pl.lit("expert_failed"))
        .when(verdict == "unusable").then(pl.lit("expert_unusable"))
        .when(pl.col("target_ids").list.len().ne_missing(pl.col("token_ids").list.len())).then(pl.lit("wrong_length"))
        .when(no_mistake).then(pl.lit("no_mistake"))
        .when(partly).then(pl.lit("partly_aligned"))
    )  # fmt: skip


def _cause() -> pl.Expr:
    """Why the expert failed, where the reason does not say it already."""
    return pl.when(pl.col("error") != pl.col("reason")).then(pl.col("error"))


def _segment_reasons() -> pl.Expr:
    """Why segments were rejected, a list a draft; a segment that changes nothing (no_op) says nothing of the draft."""
    reason = pl.element().struct.field("reason")
    return (
        pl.col("segments").list.eval(reason.filter(reason.is_not_null() & (reason != "no_op"))).alias("segment_reasons")
    )
