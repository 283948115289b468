"""Drafts in, revisions out: ask the expert about each draft, read its reply, align its segments, ask again once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import polars as pl

from core.alignment import AlignedSegment, Alignment, DraftTokens, TextCodec, align
from core.expert.client import ExpertClient
from core.expert.ledger import Reply
from core.expert.progress import LoadBytes, Progress
from core.expert.reply import parse_reply
from core.expert.request import ExpertRequest, build_request
from core.expert.settings import ExpertSettings
from core.reasking import Merged, Reask, merge, reask_of, reask_row
from data_contracts import Reasks, Revisions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Revised:
    """Frames Revisions, one row a draft and in order, and Reasks; and how many segments could be used.

    segments: of all first replies; equal: those that keep their number of tokens, which is all that the published
    filter uses; usable_first: accepted in the first replies; usable: accepted in the end.
    """

    revisions: pl.DataFrame
    reasks: pl.DataFrame
    segments: int
    equal: int
    usable_first: int
    usable: int
    asked: Mapping[str, tuple[ExpertRequest, Reply]]
    """Every request, first and second, and its outcome, by request key."""


@dataclass(frozen=True, kw_only=True)
class _Heard:
    """A draft and what its first reply, if there is one, brought."""

    draft: Row
    request: ExpertRequest
    reply: Reply | None
    verdict: str
    alignment: Alignment | None = None
    error: str | None = None

    @property
    def segments(self) -> Sequence[AlignedSegment]:
        return self.alignment.segments if self.alignment else ()

    def accepted(self, tier: str | None = None) -> int:
        """Accepted segments, of one tier or of all."""
        return sum(one.reason is None and tier in (None, one.tier) for one in self.segments)


def revise(
    drafts: pl.DataFrame,
    *,
    client: ExpertClient,
    tokenizer: "PreTrainedTokenizerBase",
    load_image: LoadBytes,
    on_progress: Callable[[Progress], None] | None = None,
) -> Revised:
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
    watch = _Watch(on_progress)
    replies = _answers(client, sent, load_image, watch)
    first = [
        _heard(row, request, replies.get(request.key) if row["text"].strip() else None, codec, settings)
        for row, request in zip(rows, requests, strict=True)
    ]
    asked = {
        heard.draft["draft_id"]: reask
        for heard in first
        if settings.reask and (reask := reask_of(heard.draft, heard.segments, settings, codec))
    }
    watch.next_question()
    again = _answers(client, [reask.request for reask in asked.values()], load_image, watch)
    final, reasks = [], []
    for heard in first:
        reask = asked.get(heard.draft["draft_id"])
        if reask is not None:
            heard, row = _asked_again(heard, reask, again[reask.request.key], codec, settings)
            reasks.append(row)
        final.append(heard)
    return Revised(
        revisions=pl.DataFrame([_row(heard) for heard in final], schema=Revisions.create_empty().schema),
        reasks=pl.DataFrame(reasks, schema=Reasks.create_empty().schema),
        segments=sum(len(heard.segments) for heard in first),
        equal=sum(heard.accepted("equal") for heard in first),
        usable_first=sum(heard.accepted() for heard in first),
        usable=sum(heard.accepted() for heard in final),
        asked={
            request.key: (request, (replies | again)[request.key])
            for request in [*sent, *(reask.request for reask in asked.values())]
        },
    )


def request_for(draft: Row, settings: ExpertSettings) -> ExpertRequest:
    """The request about one row of Drafts."""
    return build_request(
        settings,
        question=draft["prompt"],
        reference=draft["reference"],
        prediction=draft["text"],
        image_sha=draft["image_sha"],
    )


class _Watch:
    """Tells whoever watches how far both questions are, together."""

    def __init__(self, on_progress: Callable[[Progress], None] | None) -> None:
        self._on_progress = on_progress
        self._before = self._now = Progress(total=0)

    def __call__(self, progress: Progress) -> None:
        self._now = progress
        if self._on_progress is not None:
            self._on_progress(self._before + progress)

    def next_question(self) -> None:
        """What comes from now on is about further requests."""
        self._before, self._now = self._before + self._now, Progress(total=0)


def _answers(
    client: ExpertClient,
    requests: Sequence[ExpertRequest],
    load_image: LoadBytes,
    watch: "_Watch",
) -> dict[str, Reply]:
    """Replies by request key."""
    if not requests:
        return {}
    return {reply.key: reply for reply in client.ask(requests, load_image, on_progress=watch)}


def _heard(
    draft: Row, request: ExpertRequest, reply: Reply | None, codec: TextCodec, settings: ExpertSettings
) -> _Heard:
    """What a reply says of its draft. No reply: the draft is empty, there is nothing to quote and nothing was asked."""
    heard = _Heard(draft=draft, request=request, reply=reply, verdict="failed")
    if reply is None:
        return replace(heard, error="empty_draft")
    parsed = parse_reply(reply.raw) if reply.status == "answered" else None
    if parsed is None or parsed.verdict == "failed":
        return replace(heard, error=reply.error or "no_json")
    alignment = align(_tokens(draft), parsed.segments, codec=codec, settings=settings.align)
    return _with(heard, alignment, is_right=parsed.verdict == "right")


def _with(heard: _Heard, alignment: Alignment, *, is_right: bool = False) -> _Heard:
    verdict = "right" if is_right else "revised" if alignment.accepted else "unusable"
    return replace(heard, verdict=verdict, alignment=alignment)


def _asked_again(
    heard: _Heard, reask: Reask, reply: Reply, codec: TextCodec, settings: ExpertSettings
) -> tuple[_Heard, Row]:
    """The draft after its second reply, and the row of Reasks about it."""
    parsed = parse_reply(reply.raw) if reply.status == "answered" else None
    merged: Merged | None = None
    if parsed is not None and parsed.verdict != "failed":
        second = parsed.segments
        merged = merge(_tokens(heard.draft), heard.segments, second, codec=codec, settings=settings.align)
    row = reask_row(heard.draft, reask, reply, merged)
    alignment = merged.alignment if merged is not None else None
    return (_with(heard, alignment) if alignment else heard), row


def _tokens(draft: Row) -> DraftTokens:
    return DraftTokens(**{name: draft[name] for name in ("text", "prompt", "token_ids", "char_start", "char_end")})


def _row(heard: _Heard) -> Row:
    """One row of Revisions."""
    reply, alignment = heard.reply, heard.alignment
    return dict.fromkeys(Revisions.column_names()) | {
        "draft_id": heard.draft["draft_id"],
        "sample_id": heard.draft["sample_id"],
        "request_key": heard.request.key,
        "prompt_version": heard.request.prompt_version,
        "verdict": heard.verdict,
        "segments": [asdict(segment) for segment in heard.segments],
        "target_ids": alignment.target_ids if alignment else None,
        "refined_text": alignment.text if alignment else None,
        "prompt_tokens": reply.prompt_tokens if reply else None,
        "completion_tokens": reply.completion_tokens if reply else None,
        "cost_usd": reply.cost_usd if reply else None,
        "latency_s": reply.latency_s if reply else None,
        "raw_reply": reply.raw if reply else None,
        "error": heard.error,
    }
