"""The body of a chat completion, and the faults of requests that got none."""

from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from core.errors import RowError
from core.expert.redaction import Redaction


class RequestFault(RowError):
    """A request that failed for good after `attempts` tries."""

    def __init__(self, reason: str, detail: str = "", attempts: int = 1) -> None:
        super().__init__(reason, detail)
        self.args = (reason, detail, attempts)  # pickles
        self.attempts = attempts


class EndpointFault(RequestFault):
    """One that nothing is wrong with: the endpoint is ill."""


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Body(BaseModel):
    """As much of a chat completion as is needed; endpoints differ in the rest."""

    choices: list[_Choice]
    usage: _Usage | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A reply as it came: `content` may be anything."""

    content: str | None
    finish_reason: str | None
    refusal: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    latency_s: float
    attempts: int


def read_completion(text: str, redaction: Redaction, *, latency_s: float, attempts: int) -> Completion:
    """As much of the body of an answer as is needed, without the key. Raises EndpointFault if it is none."""
    try:
        body = _Body.model_validate_json(text)
    except ValidationError:
        raise EndpointFault("bad_response", f"not a chat completion: {redaction.fault(text)[:200]}", attempts) from None
    if not body.choices:
        raise EndpointFault("bad_response", "a chat completion without choices", attempts)
    choice, usage = body.choices[0], body.usage or _Usage()
    return Completion(
        content=redaction.reply(choice.message.content) if choice.message.content else choice.message.content,
        refusal=redaction.fault(choice.message.refusal)[:300] if choice.message.refusal else None,
        finish_reason=redaction.fault(choice.finish_reason)[:50] if choice.finish_reason else None,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        latency_s=latency_s,
        attempts=attempts,
    )
