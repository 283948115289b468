"""One chat completion over HTTP: retries, and what is wrong when they do not help. Nothing is recorded here.

400, 422 and other 4xx   this request is at fault: RowError
401, 403, 404, no quota  the endpoint as a whole is of no use: ExpertUnavailable
408, 409, 429, 5xx, lost connections, timeouts   tried again, then EndpointFault
"""

import asyncio
import email.utils
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import openai
from pydantic import BaseModel, SecretStr, ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from core.addresses import endpoint_address, is_loopback
from core.errors import ConfigError, ExpertUnavailable, RowError
from core.expert.dialect import process_dialects
from core.expert.limiter import Limiter
from core.expert.settings import ExpertSettings

CONNECT_ATTEMPTS = 3
_POLL_S = 0.25
_RETRYABLE = (408, 409, 429)
_NO_KEY = "none"  # the SDK insists on a key; local servers ignore it


class RequestFault(RowError):
    """A request that failed for good after `attempts` tries."""

    def __init__(self, reason: str, detail: str = "", attempts: int = 1) -> None:
        super().__init__(reason, detail)
        self.args = (reason, detail, attempts)  # pickles
        self.attempts = attempts


class EndpointFault(RequestFault):
    """One that nothing is wrong with: the endpoint is ill."""


class Withdrawn(Exception):
    """The request was not sent: the run was given up while it waited for its turn."""


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


@dataclass
class _Tries:
    """How often a request was sent so far, and when last."""

    made: int = 0
    started: float = 0.0


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


class Transport:
    """An open connection pool to one endpoint; an async context manager. The key is never part of a message."""

    def __init__(self, settings: ExpertSettings, api_key: SecretStr | None, limiter: Limiter) -> None:
        self.address, host = endpoint_address(settings.base_url)
        key = api_key.get_secret_value().strip() if api_key else ""
        if not (key.isascii() and key.isprintable()):
            raise ConfigError("the expert's API key holds characters that no HTTP header may hold")
        self._settings = settings
        self._key = key
        self._limiter = limiter
        self.dialects, self._first = process_dialects(settings), asyncio.Lock()

        async def hear(response: Any) -> None:
            limiter.hear(response.headers)

        self.sdk = openai.AsyncOpenAI(
            api_key=key or _NO_KEY,
            base_url=settings.base_url,
            max_retries=0,
            timeout=settings.timeout_s,
            # a proxy for the world is no proxy for this machine
            http_client=openai.DefaultAioHttpClient(trust_env=not is_loopback(host), event_hooks={"response": [hear]}),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.sdk.close()

    async def complete(self, body: dict[str, Any], *, tokens: int, stopped: Callable[[], bool]) -> Completion:
        """Send one request, which may take so many tokens, as fast as the limiter allows; `stopped` ends it early.

        Where the endpoint's dialect is not known, the first request finds it out and the others wait for that.

        Raises:
            Withdrawn: `stopped` came before the first try.
            RequestFault: this request cannot be answered.
            EndpointFault: tried often enough; the next request may fare better.
            ExpertUnavailable: no request can be answered.
        """
        if not self.dialects.is_known:
            async with self._first:
                if not self.dialects.is_known:
                    try:
                        return await self._say(body, tokens, stopped)
                    finally:
                        self.dialects.is_known = True
        return await self._say(body, tokens, stopped)

    async def _say(self, body: dict[str, Any], tokens: int, stopped: Callable[[], bool]) -> Completion:
        """Send the request in a dialect that the endpoint takes."""
        tries = _Tries()
        while True:
            dialect = self.dialects.current
            try:
                text = await self._persist(dialect.write(body), tokens, stopped, tries)
            except (openai.OpenAIError, TimeoutError) as error:
                if not self.dialects.learn(dialect, error):
                    raise self.explain(error, tries.made) from None  # its chain holds the request's headers
            else:
                return self.read(text, latency_s=time.monotonic() - tries.started, attempts=tries.made)

    async def _persist(self, body: dict[str, Any], tokens: int, stopped: Callable[[], bool], tries: "_Tries") -> str:
        """The answer's text, after as many tries as it takes. Raises what the last one raised."""
        last: Exception | None = None
        async for attempt in self.retrying(stopped):
            with attempt:
                if not await self._admitted(tokens, stopped):
                    raise last or Withdrawn
                tries.made, tries.started = tries.made + 1, time.monotonic()
                try:
                    return await self._post(body)
                except (openai.OpenAIError, TimeoutError) as error:
                    last = error
                    raise
        raise AssertionError("tenacity raises what the last try raised")

    def retrying(self, stopped: Callable[[], bool] = lambda: False) -> AsyncRetrying:
        """How often and when anything is tried again; what the last try raised is raised."""
        return AsyncRetrying(
            stop=lambda state: stopped() or self._is_enough(state),
            retry=retry_if_exception(is_retryable),
            wait=self._wait,
            reraise=True,
        )

    async def _admitted(self, tokens: int, stopped: Callable[[], bool]) -> bool:
        """Wait for our place, and for as long as the endpoint wants all to wait; False if `stopped` came first."""
        wait = self._limiter.book(tokens)
        while (wait := wait or self._limiter.pause()) > 0:
            if stopped():
                return False
            await asyncio.sleep(min(wait, _POLL_S))
            wait = max(0.0, wait - _POLL_S)
        return True

    async def _post(self, body: dict[str, Any]) -> str:
        async with asyncio.timeout(self._settings.timeout_s):  # the whole exchange; the client's own is for each read
            # not the typed method: it walks the body field by field, which took as long as all the rest
            return await self.sdk.post("/chat/completions", cast_to=str, body=body)

    def read(self, text: str, *, latency_s: float, attempts: int) -> Completion:
        """The body of a chat completion. Raises EndpointFault if it is none."""
        return _completion(text, redact=self.redact, latency_s=latency_s, attempts=attempts)

    def _is_enough(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        most = self._settings.max_attempts
        most = min(CONNECT_ATTEMPTS, most) if _is_unreachable(error) else most
        return stop_after_attempt(most)(state)

    def _wait(self, state: RetryCallState) -> float:
        """Exponential backoff with full jitter, on top of what the endpoint asks for."""
        error = state.outcome.exception() if state.outcome else None
        jitter = random.uniform(0, self._settings.backoff_s * 2 ** min(state.attempt_number, 20))
        return min(retry_after_s(error) + jitter, self._settings.max_wait_s)

    def explain(self, error: Exception, attempts: int) -> Exception:
        """The error as ours, with what to do about it."""
        said = self.redact(str(error))
        if isinstance(error, openai.APIStatusError):
            status = error.status_code
            if status in (401, 403, 404) or error.code == "insufficient_quota":
                return ExpertUnavailable(
                    f"the expert at {self.address} answers HTTP {status}: {_advice(status)} ({said})"
                )
            kind = EndpointFault if status >= 500 or status in _RETRYABLE else RequestFault
            return kind(f"http_{status}", said, attempts)
        if isinstance(error, openai.APITimeoutError | TimeoutError) and not _is_unreachable(error):
            return EndpointFault("timeout", f"no answer in {self._settings.timeout_s} s", attempts)
        if isinstance(error, openai.APIConnectionError):
            cause = self.redact(str(error.__cause__ or error))
            return EndpointFault("connection", f"{self.address} cannot be reached: {cause}", attempts)
        return EndpointFault("bad_response", said, attempts)

    def redact(self, text: str) -> str:
        """The text, cut short, without the key."""
        return (text.replace(self._key, "***") if self._key else text)[:300]


def _advice(status: int) -> str:
    if status == 404:
        return "check expert.base_url (does it end in /v1?) and expert.model"
    if status == 429:
        return "the account's quota is used up"
    return "check the API key in the variable that expert.api_key_env names"


def _completion(text: str, *, redact: Callable[[str], str], latency_s: float, attempts: int) -> Completion:
    try:
        body = _Body.model_validate_json(text)
    except ValidationError:
        raise EndpointFault("bad_response", f"not a chat completion: {redact(text)[:200]}", attempts) from None
    if not body.choices:
        raise EndpointFault("bad_response", "a chat completion without choices", attempts)
    choice, usage = body.choices[0], body.usage or _Usage()
    return Completion(
        content=choice.message.content,
        refusal=redact(choice.message.refusal) if choice.message.refusal else None,
        finish_reason=choice.finish_reason,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        latency_s=latency_s,
        attempts=attempts,
    )


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether no connection came about; the aiohttp transport reports a refused one as a timeout of connecting."""
    cause = error.__cause__ if isinstance(error, openai.APITimeoutError) else None
    lost = isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError)
    return lost or type(cause).__name__ == "ConnectTimeout"


def is_retryable(error: BaseException) -> bool:
    """Whether the same request may fare better later."""
    if isinstance(error, openai.APIStatusError):
        return (error.status_code in _RETRYABLE or error.status_code >= 500) and error.code != "insufficient_quota"
    return isinstance(error, openai.APIConnectionError | TimeoutError)


def retry_after_s(error: BaseException | None) -> float:
    """Seconds that the endpoint asks to wait (Retry-After as seconds or date, retry-after-ms); 0 if it does not."""
    if not isinstance(error, openai.APIStatusError):
        return 0.0
    headers = error.response.headers
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * scale)
        except (KeyError, ValueError):
            continue
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return 0.0
