"""How an endpoint wants a request written: which structured output it takes, and which parameters its model knows.

Found out by asking: a 400 that names a parameter is followed by the same request without it. What was learned holds
for the endpoint and model, for as long as the process runs.
"""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import openai

from core.expert.settings import ExpertSettings
from core.once import one_of_each

_REFUSALS = (400, 404, 415, 422, 501)
_UNSUPPORTED = re.compile(
    r"unsupported|not support|n't support|unknown|unrecogni[sz]ed|unexpected|extra|not permitted|not allowed|"
    r"invalid parameter|not available|no endpoints",
    re.IGNORECASE,
)
_FORMAT = re.compile(r"response_format|json_schema|json_object|structured.?output|guided", re.IGNORECASE)
_LIMITS = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One way to write a request. `auto`: may its structured output still change?"""

    auto: bool
    structured: Literal["json_schema", "json_object", "none"]
    limit: Literal["max_completion_tokens", "max_tokens"]
    other_limit: bool = False
    temperature: bool = True

    def write(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body of a request, which `core.expert.request` wrote, in this dialect."""
        limit = next((body[name] for name in _LIMITS if name in body), None)
        dropped = {*_LIMITS} | ({"response_format"} if self.auto else set())
        dropped |= set() if self.temperature else {"temperature"}
        written = {name: value for name, value in body.items() if name not in dropped}
        if limit is not None:
            written[self.limit] = limit
        if self.auto and self.structured == "json_schema" and "response_format" in body:
            written["response_format"] = body["response_format"]
        elif self.auto and self.structured == "json_object":
            written["response_format"] = {"type": "json_object"}
        return written

    def after(self, param: str | None, said: str) -> "Dialect | None":
        """What to try after a refusal that names `param`, or whose text does; None: it is not about the dialect.

        Each step goes one way, so that there is an end.
        """
        if not _UNSUPPORTED.search(said):
            return None
        if self.auto and self.structured != "none" and _FORMAT.search(f"{param} {said}"):
            return replace(self, structured="json_object" if self.structured == "json_schema" else "none")
        if self.temperature and (param == "temperature" or (not param and "temperature" in said)):
            return replace(self, temperature=False)
        if not self.other_limit and (param == self.limit or (not param and self.limit in said)):
            older = self.limit == "max_completion_tokens"
            return replace(self, limit="max_tokens" if older else "max_completion_tokens", other_limit=True)
        return None


def said_by(error: Exception) -> str:
    """What the endpoint said of a refusal. The SDK's own text has it in OpenAI's form alone, `error.message`."""
    text = str(error)
    words = " ".join(_words(error.body)) if isinstance(error, openai.APIStatusError) else ""
    return text if not words or words in text else f"{text} - {words}"


def _words(body: object) -> Iterator[str]:
    """The texts of an error's body: {"error": "..."}, {"detail": [{"loc": [...], "msg": "..."}]}, or a page."""
    if isinstance(body, str):
        yield body
    elif isinstance(body, list):
        for part in body[:10]:
            yield from _words(part)
    elif isinstance(body, dict):
        for name in ("message", "msg", "error", "detail", "loc"):
            yield from _words(body.get(name))


class Dialects:
    """What is known of one endpoint and model; safe to use from many threads.

    is_known: has it answered in this dialect, so that all may ask at once?
    """

    def __init__(self, first: Dialect) -> None:
        self.current = first
        self.is_known = not first.auto
        self._lock = threading.Lock()

    def learn(self, spoken: Dialect, error: Exception) -> bool:
        """Whether a request that was refused in the dialect `spoken` should be sent again in the current one."""
        if not isinstance(error, openai.APIStatusError) or error.status_code not in _REFUSALS:
            return False
        with self._lock:
            if self.current == spoken:
                other = spoken.after(error.param, said_by(error))
                self.current = other or spoken
            return self.current != spoken


def process_dialects(settings: ExpertSettings) -> Dialects:
    """The memory of this process for the endpoint and model of the settings."""
    return _dialects(settings.base_url, settings.model, settings.structured, settings.max_tokens_field)


@one_of_each(maxsize=64)
def _dialects(
    _base_url: str,
    _model: str,
    structured: Literal["auto", "json_schema", "json_object", "none"],
    limit: Literal["max_completion_tokens", "max_tokens"],
) -> Dialects:
    auto = structured == "auto"
    return Dialects(Dialect(auto=auto, structured="json_schema" if structured == "auto" else structured, limit=limit))
