"""What the expert made of the segments that it was asked for again, one draft a row."""

from typing import ClassVar

import dataframely as dy

from data_contracts.contract import Contract


class Reasks(Contract):
    """A draft some of whose segments could not be used, and what the second question brought.

    `rejected` and the draft's row of Revisions together hold every segment of the first reply. Where the second reply
    was used, its segments are in that row too: they stand there in the place of `rejected`.
    """

    table: ClassVar[str] = "reasks"
    id_column: ClassVar[str] = "draft_id"

    draft_id = dy.String(primary_key=True)
    sample_id = dy.String()
    request_key = dy.String(regex=r"^[0-9a-f]{64}$")
    prompt_version = dy.String()
    rejected = dy.List(
        dy.Struct({"org": dy.String(), "target": dy.String(), "reason": dy.String()}),
        description="the segments of the first reply that were asked for again",
    )
    segments = dy.List(
        dy.Struct({"org": dy.String(), "target": dy.String(), "reason": dy.String(nullable=True)}),
        description="those of the second reply; reason: why it was rejected, null: accepted",
    )
    mended = dy.Int32(description="segments of the second reply that were accepted")
    prompt_tokens = dy.Int64(nullable=True)
    completion_tokens = dy.Int64(nullable=True)
    cost_usd = dy.Float64(nullable=True, description="null when the price is unknown")
    latency_s = dy.Float64(nullable=True)
    raw_reply = dy.String(nullable=True)
    error = dy.String(nullable=True, description="why there is no usable second reply")
