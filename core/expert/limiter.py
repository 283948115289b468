"""How fast an account may ask: requests and tokens a minute, and what the endpoint's headers say is left.

The clients of a process share one limiter for each account. Requests are spread evenly, for endpoints count in shorter
windows than a minute too: each books the next free place and waits for that alone, so that none stands behind
another's wait for anything else.
"""

import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Protocol

from core.expert.settings import ExpertSettings

_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>ms|h|m|s|)")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_KINDS = ("requests", "tokens")


class Limiter(Protocol):
    """Says when to send. Safe to use from many threads; never blocks."""

    def book(self, tokens: int) -> float:
        """Take the next free place for a request of so many tokens, prompt and longest reply: seconds until then."""
        ...

    def pause(self) -> float:
        """Seconds until the endpoint takes requests again, as far as it has said so; 0: it does now."""
        ...

    def hear(self, headers: Mapping[str, str]) -> None:
        """Take note of the headers of any answer, x-ratelimit-* among them."""
        ...


class ProcessLimiter:
    """A limiter for the clients of one process.

    None: no limit. `clock` are seconds from anywhere. `most_s` bounds what a header can ask for.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        most_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds_a_request = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_a_token = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._most_s = most_s
        self._clock = clock
        self._lock = threading.Lock()
        self._free = self._resumes = float("-inf")
        self._needed = {"requests": 1, "tokens": 1}

    def book(self, tokens: int) -> float:
        """See Limiter. The place is taken, whether it is used or not."""
        with self._lock:
            now = self._clock()
            place = max(now, self._free)
            self._free = place + max(self._seconds_a_request, tokens * self._seconds_a_token)
            self._needed["tokens"] = tokens
            return place - now

    def pause(self) -> float:
        """See Limiter."""
        with self._lock:
            return max(0.0, self._resumes - self._clock())

    def hear(self, headers: Mapping[str, str]) -> None:
        """See Limiter. An endpoint that says nothing, or nothing that can be read, changes nothing."""
        waits = [wait_s(headers, kind, self._needed[kind]) for kind in _KINDS]
        if (wait := min(max(waits), self._most_s)) > 0:
            with self._lock:
                self._resumes = max(self._resumes, self._clock() + wait)


def wait_s(headers: Mapping[str, str], kind: str, needed: int) -> float:
    """Seconds until `needed` requests or tokens are left: x-ratelimit-remaining-KIND, -limit-KIND and -reset-KIND.

    The reset is when all of the limit is there again; it fills up evenly, so a part is there earlier.
    """
    try:
        left = float(headers[f"x-ratelimit-remaining-{kind}"])
        reset = seconds_of(headers[f"x-ratelimit-reset-{kind}"])
        full = float(headers.get(f"x-ratelimit-limit-{kind}", "0"))
    except (KeyError, ValueError):
        return 0.0
    if left >= needed:
        return 0.0
    return reset * (min(1.0, (needed - left) / (full - left)) if full > left else 1.0)


def seconds_of(text: str) -> float:
    """ "6m0s", "20ms", "1.5" or "1h2m" in seconds. Raises ValueError."""
    parts = list(_DURATION.finditer(text.strip()))
    if not parts or "".join(part.group() for part in parts) != text.strip():
        raise ValueError(f"no duration: {text[:20]!r}")
    return sum(float(part["number"]) * _SECONDS[part["unit"]] for part in parts)


def process_limiter(settings: ExpertSettings) -> Limiter:
    """The one of this process for the account that the settings describe."""
    rates = settings.requests_per_minute, settings.tokens_per_minute
    return _limiter(settings.base_url, settings.model, settings.api_key_env, *rates, settings.max_wait_s)


@lru_cache(maxsize=64)
def _limiter(
    _base_url: str, _model: str, _key: str, requests: float | None, tokens: float | None, most_s: float
) -> ProcessLimiter:
    return ProcessLimiter(requests, tokens, most_s=most_s)
