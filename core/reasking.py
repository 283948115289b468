"""Segments that could not be used go back to the expert once, all of a draft together, with the reason.

    draft     "a ring left of a ring"      first reply   [("ring", "red ring")]           ambiguous
    re-ask    {..., "rejected": [{"org": "ring", "target": "red ring", "problem": "ambiguous", ...}]}
    reply     [("a ring left", "a red ring left")]

A second reply is used as far as it takes nothing away: every segment that was accepted before stays accepted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.alignment import AlignedSegment, Alignment, DraftTokens, TextCodec, align
from core.expert.ledger import Reply
from core.expert.reask_request import PROBLEMS, ReaskTask, RejectedSegment, build_reask
from core.expert.request import ExpertRequest, SegmentModel
from core.expert.settings import AlignmentSettings, ExpertSettings

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reask:
    """One draft's second question. `rejected`: the segments of the first reply that it is about."""

    request: ExpertRequest
    rejected: tuple[AlignedSegment, ...]


def reask_of(draft: Row, first: Sequence[AlignedSegment], settings: ExpertSettings, codec: TextCodec) -> Reask | None:
    """What to ask again about a draft, given what became of the first reply's segments; None: nothing."""
    rejected = tuple(segment for segment in first if segment.reason in PROBLEMS)
    if not rejected:
        return None
    task = ReaskTask(
        question=draft["prompt"],
        ground_truth=draft["reference"],
        prediction=draft["text"],
        accepted=[SegmentModel(org=one.org, target=one.target) for one in first if one.reason is None],
        rejected=[
            RejectedSegment(
                org=one.org,
                target=one.target,
                problem=problem,
                org_tokens=len(codec.encode(one.org)[0]),
                target_tokens=len(codec.encode(one.target)[0]),
            )
            for one in rejected
            for problem in PROBLEMS
            if problem == one.reason
        ],
    )
    return Reask(request=build_reask(settings, task, image_sha=draft["image_sha"]), rejected=rejected)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """`alignment`: of both replies, or None if the second gained nothing. `second`: what became of its segments."""

    alignment: Alignment | None
    second: tuple[AlignedSegment, ...]


def merge(
    draft: DraftTokens,
    first: Sequence[AlignedSegment],
    second: Sequence[tuple[object, object]],
    *,
    codec: TextCodec,
    settings: AlignmentSettings,
) -> Merged:
    """The first reply's segments without those that were asked for again, and the second's, aligned together.

    Where all of the second's would cost an accepted one of the first its place, they are tried one by one.
    """
    unread = [segment for segment in first if segment.reason == "parse_error"]  # as text it would say something else
    stay = [segment for segment in first if segment.reason not in (*PROBLEMS, "parse_error")]
    standing = [index for index, segment in enumerate(stay) if segment.reason is None]

    def aligned(more: Sequence[tuple[object, object]]) -> Alignment:
        return align(draft, [*((one.org, one.target) for one in stay), *more], codec=codec, settings=settings)

    def gains(found: Alignment, at_least: int) -> bool:
        unharmed = all(found.segments[index].reason is None for index in standing)
        return unharmed and sum(one.reason is None for one in found.segments[len(stay) :]) >= at_least

    together = aligned(second)
    outcome = list(together.segments[len(stay) :])
    if gains(together, 1):
        return Merged(alignment=replace(together, segments=[*together.segments, *unread]), second=tuple(outcome))
    best, chosen = None, list[int]()
    for index in range(len(second)):
        found = aligned([second[i] for i in [*chosen, index]])
        if gains(found, len(chosen) + 1):
            best, chosen = found, [*chosen, index]
    for index, segment in enumerate(outcome):
        if segment.reason is None:  # it could be used, but an accepted segment of the first reply could not any more
            outcome[index] = replace(segment, reason="length_mismatch", token_start=-1, token_end=-1, tier=None)
    if best is None:
        return Merged(alignment=None, second=tuple(outcome))
    for place, index in enumerate(chosen, start=len(stay)):
        outcome[index] = best.segments[place]
    whole = replace(best, segments=[*best.segments[: len(stay)], *outcome, *unread])
    return Merged(alignment=whole, second=tuple(outcome))


def reask_row(draft: Row, reask: Reask, reply: Reply, merged: Merged | None) -> Row:
    """One row of Reasks. `merged`: None if the second reply could not be read."""
    second = merged.second if merged is not None else ()
    return {
        "draft_id": draft["draft_id"],
        "sample_id": draft["sample_id"],
        "request_key": reask.request.key,
        "prompt_version": reask.request.prompt_version,
        "rejected": [{"org": one.org, "target": one.target, "reason": one.reason} for one in reask.rejected],
        "segments": [{"org": one.org, "target": one.target, "reason": one.reason} for one in second],
        "mended": sum(one.reason is None for one in second) if merged is not None and merged.alignment else 0,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "cost_usd": reply.cost_usd,
        "latency_s": reply.latency_s,
        "raw_reply": reply.raw,
        "error": None if merged is not None else reply.error or "no_json",
    }
