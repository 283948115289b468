"""Drafts in, revisions out: ask the expert about each draft, read its reply, align its segments."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import polars as pl

from core.alignment import DraftTokens, TextCodec, align
from core.expert.client import ExpertClient
from core.expert.ledger import Reply
from core.expert.progress import LoadBytes, Progress
from core.expert.reply import parse_reply
from core.expert.request import ExpertRequest, build_request
from core.expert.settings import AlignmentSettings, ExpertSettings
from data_contracts import Revisions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]


def revise(
    drafts: pl.DataFrame,
    *,
    client: ExpertClient,
    tokenizer: "PreTrainedTokenizerBase",
    load_image: LoadBytes,
    on_progress: Callable[[Progress], None] | None = None,
) -> pl.DataFrame:
    """One row of the Revisions contract for each row of Drafts, in order.

    right: nothing to correct. revised: at least one segment aligned. unusable: segments, none of which did.
    failed: `error` says why (empty_draft, image_missing, length, http_400, no_json, ...).

    Args:
        load_image: sha256 -> encoded bytes; a RowError, KeyError or OSError fails that draft alone.

    Raises:
        ExpertUnavailable, BudgetExceeded: see ExpertClient; a later call asks only what is not answered yet.
    """
    settings, codec = client.settings, TextCodec.of(tokenizer)
    rows = list(drafts.iter_rows(named=True))
    requests = [request_for(row, settings) for row in rows]
    sent = [request for row, request in zip(rows, requests, strict=True) if row["text"].strip()]
    replies = {reply.key: reply for reply in client.ask(sent, load_image, on_progress=on_progress)} if sent else {}
    revisions = [
        revision_of(row, request, replies.get(request.key) if row["text"].strip() else None, codec, settings.align)
        for row, request in zip(rows, requests, strict=True)
    ]
    return pl.DataFrame(revisions, schema=Revisions.create_empty().schema, orient="row")


def request_for(draft: Row, settings: ExpertSettings) -> ExpertRequest:
    """The request about one row of Drafts."""
    return build_request(
        settings,
        question=draft["prompt"],
        reference=draft["reference"],
        prediction=draft["text"],
        image_sha=draft["image_sha"],
    )


def revision_of(
    draft: Row, request: ExpertRequest, reply: Reply | None, codec: TextCodec, settings: AlignmentSettings
) -> Row:
    """One row of Revisions. No reply: the draft is empty, there is nothing to quote and nothing was asked."""
    row: Row = dict.fromkeys(Revisions.column_names()) | {
        "draft_id": draft["draft_id"],
        "sample_id": draft["sample_id"],
        "request_key": request.key,
        "prompt_version": request.prompt_version,
        "verdict": "failed",
        "segments": [],
    }
    if reply is None:
        return row | {"error": "empty_draft"}
    row |= {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "cost_usd": reply.cost_usd,
        "latency_s": reply.latency_s,
        "raw_reply": reply.raw,
    }
    parsed = parse_reply(reply.raw) if reply.status == "answered" else None
    if parsed is None or parsed.verdict == "failed":
        return row | {"error": reply.error or "no_json"}
    tokens = DraftTokens(**{name: draft[name] for name in ("text", "prompt", "token_ids", "char_start", "char_end")})
    alignment = align(tokens, parsed.segments, codec=codec, settings=settings)
    verdict = "right" if parsed.verdict == "right" else "revised" if alignment.accepted else "unusable"
    return row | {
        "verdict": verdict,
        "segments": [asdict(segment) for segment in alignment.segments],
        "target_ids": alignment.target_ids,
        "refined_text": alignment.text,
    }
