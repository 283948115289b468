"""What the expert said of each draft, and what became of each of its segments."""

from typing import ClassVar

import dataframely as dy

from data_contracts.contract import Contract

VERDICTS = ("right", "revised", "unusable", "failed")
SEGMENT_REASONS = (
    "not_found",
    "ambiguous",
    "length_mismatch",
    "in_prompt",
    "no_op",
    "overlap",
    "special_token",
    "parse_error",
)


class Revisions(Contract):
    """One draft's revision a row.

    verdict: `right` (nothing to correct), `revised` (at least one segment aligned), `unusable` (segments, none of
    which aligned), `failed` (no usable reply; `error` says why).
    `target_ids` is the draft's response with the accepted segments applied, position by position; null if failed.
    """

    table: ClassVar[str] = "revisions"
    id_column: ClassVar[str] = "draft_id"

    draft_id = dy.String(primary_key=True)
    sample_id = dy.String()
    request_key = dy.String(regex=r"^[0-9a-f]{64}$")
    prompt_version = dy.String()
    verdict = dy.Enum(VERDICTS)
    segments = dy.List(
        dy.Struct(
            {
                "org": dy.String(),
                "target": dy.String(),
                "reason": dy.String(nullable=True, description="why it was rejected; null: accepted"),
                "char_start": dy.Int32(description="-1 if it was not located"),
                "char_end": dy.Int32(),
                "token_start": dy.Int32(),
                "token_end": dy.Int32(),
                "tier": dy.String(nullable=True, description="how it aligned: 'equal' or 're-diff'"),
            }
        )
    )
    target_ids = dy.List(dy.Int32(), nullable=True)
    refined_text = dy.String(nullable=True)
    prompt_tokens = dy.Int64(nullable=True)
    completion_tokens = dy.Int64(nullable=True)
    cost_usd = dy.Float64(nullable=True, description="null when the price is unknown")
    latency_s = dy.Float64(nullable=True)
    raw_reply = dy.String(nullable=True)
    error = dy.String(nullable=True)
