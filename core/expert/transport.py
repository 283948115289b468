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
from functools import partial
from typing import Any

import httpx2
import openai
from pydantic import SecretStr
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from core.addresses import endpoint_address, is_loopback
from core.errors import ConfigError, ExpertUnavailable
from core.expert.completion import Completion, EndpointFault, RequestFault, read_completion
from core.expert.dialect import Dialect, process_dialects, said_by
from core.expert.limiter import Limiter
from core.expert.redaction import Redaction
from core.expert.request import encode
from core.expert.settings import ExpertSettings

CONNECT_ATTEMPTS = 3
_IDLE_S = 4.0
_RETRYABLE = (408, 409, 429)
_NO_KEY = "none"  # the SDK insists on a key; local servers ignore it


class Withdrawn(Exception):
    """The request was not sent: the run was given up while it waited for its turn."""


class _Outdated(Exception):
    """The body is written in a dialect that another request was refused for in the meantime."""


@dataclass
class _Tries:
    """How often a request was sent so far, and when last."""

    on_turn: Callable[[], None]
    made: int = 0
    started: float = 0.0


class Transport:
    """An open connection pool to one endpoint, for all that ask it: together they have `concurrency` in flight.

    The key is never part of a message.
    """

    def __init__(self, settings: ExpertSettings, api_key: SecretStr | None, limiter: Limiter) -> None:
        self.address, host = endpoint_address(settings.base_url)
        key = api_key.get_secret_value().strip() if api_key else ""
        if not (key.isascii() and key.isprintable()):
            raise ConfigError("the expert's API key holds characters that no HTTP header may hold")
        self._settings = settings
        self._redaction = Redaction(key)
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
            http_client=openai.DefaultAioHttpClient(
                trust_env=not is_loopback(host), event_hooks={"response": [hear]}, limits=_limits(settings.concurrency)
            ),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self.sdk.close()

    async def complete(
        self,
        outline: dict[str, Any],
        image: bytes | None,
        *,
        tokens: int,
        stopped: Callable[[], bool],
        on_turn: Callable[[], None] = lambda: None,
    ) -> Completion:
        """Send one request, which may take so many tokens, as fast as the limiter allows; `stopped` ends it early.

        `on_turn` is called before each try, when there is a free place in flight: another may be made ready now.
        A completion keeps its place until `leave`: what a kill can lose is never more than what may be in flight.
        Where the endpoint's dialect is not known, the first request finds it out and the others wait for that.

        Raises:
            Withdrawn: `stopped` came before the first try.
            RequestFault: this request cannot be answered.
            EndpointFault: tried often enough; the next request may fare better.
            ExpertUnavailable: no request can be answered.
        """
        tries = _Tries(on_turn)
        if not self.dialects.is_known:
            async with self._first:
                if not self.dialects.is_known:
                    try:
                        return await self._say(outline, image, tokens, stopped, tries)
                    finally:
                        self.dialects.is_known = True
        return await self._say(outline, image, tokens, stopped, tries)

    async def _say(
        self, outline: dict[str, Any], image: bytes | None, tokens: int, stopped: Callable[[], bool], tries: "_Tries"
    ) -> Completion:
        """Send the request in a dialect that the endpoint takes."""
        while True:
            dialect = self.dialects.current
            encode_it = partial(encode, dialect.write(outline), image)
            body = encode_it() if image is None else await asyncio.to_thread(encode_it)
            try:
                text = await self._persist(dialect, body, tokens, stopped, tries)
            except _Outdated:
                continue
            except (openai.OpenAIError, TimeoutError) as error:
                if not self.dialects.learn(dialect, error):
                    raise self.explain(error, tries.made) from None  # its chain holds the request's headers
            else:
                try:
                    return self.read(text, latency_s=time.monotonic() - tries.started, attempts=tries.made)
                except BaseException:
                    self.leave()
                    raise

    def leave(self) -> None:
        """The completion is in the ledger: its place in flight is free."""
        self._limiter.leave()

    async def _persist(
        self, dialect: Dialect, body: bytes, tokens: int, stopped: Callable[[], bool], tries: "_Tries"
    ) -> str:
        """The answer's text, after as many tries as it takes. Raises what the last one raised, or _Outdated."""
        last: Exception | None = None
        async for attempt in self.retrying(stopped):
            with attempt:
                if not await self._limiter.enter(tokens, stopped):
                    raise last or Withdrawn
                try:  # the place is free again while this request waits to be tried again
                    if stopped():  # while it waited
                        raise last or Withdrawn
                    tries.on_turn()
                    if self.dialects.current != dialect:
                        raise _Outdated
                    tries.made, tries.started = tries.made + 1, time.monotonic()
                    return await self._post(body)
                except BaseException as error:
                    self._limiter.leave()
                    last = error if isinstance(error, Exception) else last
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

    async def _post(self, body: bytes) -> str:
        async with asyncio.timeout(self._settings.timeout_s):  # the whole exchange; the client's own is for each read
            # not the typed method: it walks the body field by field, which took as long as all the rest
            return await self.sdk.post("/chat/completions", cast_to=str, content=body)

    def read(self, text: str, *, latency_s: float, attempts: int) -> Completion:
        """The body of a chat completion. Raises EndpointFault if it is none."""
        return read_completion(text, self._redaction, latency_s=latency_s, attempts=attempts)

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
        said = self.redact(said_by(error))
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
        return self._redaction.fault(text)[:300]


def _limits(concurrency: int) -> httpx2.Limits:
    """A connection for each request in flight. Servers close idle ones after 5 s: ours are gone before."""
    return httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency, keepalive_expiry=_IDLE_S)


def _advice(status: int) -> str:
    if status == 404:
        return "check expert.base_url (does it end in /v1?) and expert.model"
    if status == 429:
        return "the account's quota is used up"
    return "check the API key in the variable that expert.api_key_env names"


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
