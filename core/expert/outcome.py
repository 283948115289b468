"""What came of a request, as a row of the ledger, and what it took."""

from core.expert.completion import Completion
from core.expert.estimate import Use, cost_of
from core.expert.ledger import Reply
from core.expert.reply import parse_reply
from core.expert.request import ExpertRequest
from core.expert.settings import ExpertSettings

_PERHAPS_PAID = ("timeout", "connection", "bad_response")
"""Faults after which the endpoint may have done its work and charges for it."""


def judged(settings: ExpertSettings, request: ExpertRequest, completion: Completion) -> Reply:
    """The completion as an outcome. A reply that is cut off, refused or cannot be read has failed, though paid."""
    if completion.finish_reason in ("length", "content_filter"):
        error: str | None = completion.finish_reason
    elif completion.refusal:
        error = f"refusal: {completion.refusal[:300]}"
    else:
        parsed = parse_reply(completion.content)
        error = parsed.problems[0] if parsed.verdict == "failed" else None
    return Reply(
        key=request.key,
        status="failed" if error else "answered",
        model=settings.model,
        prompt_version=request.prompt_version,
        raw=completion.content,
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        cost_usd=cost_of(settings, completion.prompt_tokens, completion.completion_tokens),
        latency_s=completion.latency_s,
        attempts=completion.attempts,
        error=error,
    )


def failure(settings: ExpertSettings, request: ExpertRequest, error: str, attempts: int = 0) -> Reply:
    """The outcome of a request that got no completion."""
    return Reply(
        key=request.key,
        status="failed",
        model=settings.model,
        prompt_version=request.prompt_version,
        attempts=attempts,
        error=error,
    )


def use_of(reply: Reply, most: Use) -> Use:
    """What a request took that was sent; `most` where nobody knows better."""
    if reply.prompt_tokens is not None and reply.completion_tokens is not None:
        cost = most.cost_usd if reply.cost_usd is None else reply.cost_usd
        return Use(requests=1, tokens=reply.prompt_tokens + reply.completion_tokens, cost_usd=cost)
    refused = reply.latency_s is None and not (reply.error or "").startswith(_PERHAPS_PAID)
    return Use(requests=1) if refused else most
