"""The expert's reply as segments, whatever real models make of the format they were asked for.

Accepted: the JSON that was asked for; code fences, prose or reasoning around it; `Right.`, `"right"`, `RIGHT`; one
object for a list; another name for the list; trailing commas, single quotes, missing quotes; a reply that was cut off
(its complete items are kept). Nothing is executed or followed: a reply is segments, right, or failed.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from core.alignment import Segment
from core.expert.salvage import salvage

Verdict = Literal["right", "revised", "failed"]

MAX_CHARS = 100_000
MAX_SEGMENTS = 64
_ORG = ("org", "original", "old", "from", "wrong", "before", "source")
_TARGET = ("target", "replacement", "new", "to", "corrected", "correction", "after")
_LISTS = (
    "segments",
    "revise",
    "revisions",
    "revision",
    "corrections",
    "edits",
    "changes",
    "errors",
    "result",
    "answer",
)
_RIGHT = ("right", "correct")
_VERDICTS = (*_RIGHT, "verdict", "is_right", "is_correct")
_RIGHT_PROSE = re.compile(r"""["'*`(\s]*(right|correct)["'*`)\s]*([.!\n]|$)""", re.IGNORECASE)
_RIGHT_SENTENCE = re.compile(
    r"""\W*(?:(?:final\s+)?(?:answer|verdict|result|output)\W+)?
    (?:(?:right|correct|yes)\b\W*)?
    (?:right|correct
      |(?:the|this)\s(?:prediction|caption|description|draft|text)\s(?:is|appears\sto\sbe|seems)\s
       (?:(?:already|completely|entirely|fully|factually)\s)?(?:right|correct|accurate)
      |(?:there\sare\s)?no\s(?:errors?|mistakes?|corrections?|changes?)
       (?:\s(?:is|are|was|were))?(?:\s(?:found|needed|necessary|required|detected))?
    )\W*""",
    re.IGNORECASE | re.VERBOSE,
)
_DOUBT = re.compile(r"[\[{]|\b(but|however|except|wrong|incorrect|should|error)", re.IGNORECASE)
# closed, opened by the chat template before the reply began, or cut off
_THINKING = re.compile(
    r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)|\A(?:(?!<think).)*?</think(?:ing)?>", re.IGNORECASE | re.DOTALL
)
_FENCE = re.compile(r"```[a-zA-Z0-9]*\s*\n(.*?)(?:```|\Z)", re.DOTALL)
_OPENING = re.compile(r"\{|\[(?=\s*[\[{\"\]])")  # not the brackets of prose


@dataclass(frozen=True, kw_only=True)
class ParsedReply:
    """`segments` may hold values that are no strings: alignment rejects those as parse_error.

    problems: what was unusual about the form, in snake_case; the first one of a failed reply says why it failed.
    """

    verdict: Verdict
    segments: tuple[Segment, ...] = ()
    problems: tuple[str, ...] = ()


def parse_reply(raw: str | None) -> ParsedReply:
    """Read a reply. Never raises.

    Example: 'Sure! ```json\\n{"org": "red", "target": "blue"}\\n```' -> revised, one segment, problems ("not_strict",).
    """
    text = (raw or "").strip().lstrip("\ufeff")
    if len(text) > MAX_CHARS:
        return _failed("reply_too_long")
    if (items := _read(_loads(text))) is not None:
        return _reply(items, [] if text.startswith("{") else ["not_strict"])
    text = _THINKING.sub("", text).strip()
    if not text:
        return _failed("empty_reply")
    for candidate in [*reversed(_FENCE.findall(text)), text]:
        if (items := _last_answer(candidate)) is not None:
            return _reply(items, ["not_strict"])
    if _RIGHT_SENTENCE.fullmatch(text) or (_RIGHT_PROSE.match(text) and not _DOUBT.search(text)):
        return _reply([], ["not_strict"])
    return _salvage(text)


def _reply(items: list[Segment], problems: list[str]) -> ParsedReply:
    if len(items) > MAX_SEGMENTS:
        items, problems = items[:MAX_SEGMENTS], [*problems, "too_many_segments"]
    return ParsedReply(verdict="revised" if items else "right", segments=tuple(items), problems=tuple(problems))


def _loads(text: str) -> Any:
    """The JSON value, or None (which is no answer either)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _last_answer(text: str) -> list[Segment] | None:
    """The items of the last JSON value in `text` that is an answer; what came earlier are drafts or examples.

    Values with nothing between them but white space and punctuation (JSON lines) are one answer.
    """
    found: list[Segment] | None = None
    end = 0
    for value, start, stop in _json_values(text):
        items = _read(value)
        if value == [] and text[stop:].partition("\n")[0].strip(" \t\r.`"):
            items = None  # brackets in the middle of a sentence are no answer
        if items is not None:
            joined = found if found and not text[end:start].strip(" \t\r\n,;") else []
            found, end = joined + items, stop
    return found


def _json_values(text: str) -> Iterator[tuple[Any, int, int]]:
    """Every outermost JSON object or list in `text` with its place, up to the first broken one: see `_salvage`."""
    decoder, position = json.JSONDecoder(), 0
    while (match := _OPENING.search(text, position)) is not None:
        try:
            value, position = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            return
        yield value, match.start(), position


def _salvage(text: str) -> ParsedReply:
    """The complete items of a reply that is not JSON; {"segments": []} in such a form is an answer, too."""
    items: list[Segment] = []
    complete, end = False, 0
    for value, stop in salvage(text):
        read = _read(value) if _is_whole(value) else None
        if read is not None:
            complete, end = True, stop
            items += read
    if not complete:
        return _failed("no_json")
    if "{" in text[end:] or ("[" in text[:end] and "]" not in text[end:] and items):
        return _reply(items, ["repaired", "truncated"]) if items else _failed("truncated")
    return _reply(items, ["repaired"])


def _is_whole(value: dict[str, Any]) -> bool:
    """Not half an item: one that names what to replace also says by what."""
    names = {str(name).strip().lower() for name in value}
    return bool(names & set(_ORG)) == bool(names & set(_TARGET))


def _failed(problem: str) -> ParsedReply:
    return ParsedReply(verdict="failed", problems=(problem,))


def _read(value: Any, depth: int = 0) -> list[Segment] | None:
    """The items that a JSON value holds ([]: right), or None if it is no answer."""
    if depth > 4:
        return None
    if isinstance(value, str):
        if value.strip(" .!\"'*").lower() in _RIGHT:
            return []
        return _read(_loads(value), depth + 1)  # JSON within a JSON string
    if isinstance(value, list):
        return _read_list(value, depth)
    return _read_object(value, depth) if isinstance(value, dict) else None


def _read_list(values: list[Any], depth: int) -> list[Segment] | None:
    items: list[Segment] = []
    for value in values:
        read = _read_pair(value) or _read(value, depth + 1)
        if read is None:
            read = [Segment(value, None)]  # type: ignore[arg-type] # alignment counts it as parse_error
        items += read
    return items


def _read_pair(value: Any) -> list[Segment] | None:
    """["red", "blue"] as an item of a list."""
    if isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value):
        return [Segment(value[0], value[1])]
    return None


def _read_object(value: dict[str, Any], depth: int) -> list[Segment] | None:
    fields = {str(name).strip().lower(): field for name, field in value.items()}
    org, target = (next((fields[name] for name in names if name in fields), None) for names in (_ORG, _TARGET))
    if org is not None or target is not None:
        return [Segment(_text(org), _text(target))]
    for name in _LISTS:
        if isinstance(fields.get(name), list | dict | str):
            return _read(fields[name], depth + 1)
    verdicts = [field for name, field in fields.items() if name in _VERDICTS]
    if any(field is True or (isinstance(field, str) and field.strip(" .!").lower() in _RIGHT) for field in verdicts):
        return []
    nested = [field for field in fields.values() if isinstance(field, list | dict)]
    return _read(nested[0], depth + 1) if len(fields) == 1 and nested else None


def _text(value: Any) -> Any:
    """Numbers as the text they stand for; anything else as it is."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
