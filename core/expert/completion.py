"""The body of a chat completion, and the faults of requests that got none."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ValidationError

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


_MOST_TOKENS = 2**31 - 1
"""What a database's integer holds."""


def _text(content: Any) -> Any:
    """The text of a content that comes in parts, as some endpoints have it; anything else as it is."""
    if not isinstance(content, list):
        return content
    parts = [part.get("text") for part in content if isinstance(part, dict)]
    return "".join(part for part in parts if isinstance(part, str))


def _count(tokens: Any) -> int | None:
    """A number of tokens; what cannot be one is unknown: a reply that was paid for is not lost for it."""
    is_count = isinstance(tokens, int | float) and not isinstance(tokens, bool) and 0 <= tokens <= _MOST_TOKENS
    return int(tokens) if is_count else None


class _Message(BaseModel):
    content: Annotated[str | None, BeforeValidator(_text)] = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: Annotated[int | None, BeforeValidator(_count)] = None
    completion_tokens: Annotated[int | None, BeforeValidator(_count)] = None


class _Body(BaseModel):
    """As much of a chat completion as is needed; endpoints differ in the rest."""

    choices: list[_Choice]
    usage: Annotated[_Usage | None, BeforeValidator(lambda usage: usage if isinstance(usage, dict) else None)] = None


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
