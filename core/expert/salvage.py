"""Objects out of text that is not quite JSON: trailing commas, single quotes, missing quotes, a reply that was cut off.

Each closed {...} is repaired by itself, so that nothing is made up: what a string quotes is no object, and an object
that is not closed is none either.
"""

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

import json_repair

_DOUBLE = r'"(?:\\.|[^"\\])*+(?:"|\\?\Z)'
# between single quotes an apostrophe is one unless punctuation of JSON follows
_SINGLE = r"(?<=[{\[,:\s])'(?:\\.|(?!'\s*[:,}\]])[^\\])*+(?:'|\\?\Z)"
_STRICT = re.compile(rf"{_DOUBLE}|[{{}}]", re.DOTALL)
_PYTHON = re.compile(rf"{_DOUBLE}|{_SINGLE}|[{{}}]", re.DOTALL)
_BLIND = re.compile(r"[{}]")
_SINGLE_KEY = re.compile(r"[{,]\s*'\w+'\s*:")


def salvage(text: str) -> list[tuple[dict[str, Any], int]]:
    """The closed objects without objects in them, in order, each with where it ends.

    Example: "{'a': 1, 'b': 'it's'}, {'a': 2, 'b'" -> [({"a": 1, "b": "it's"}, 21)].
    """
    readings = [_PYTHON] if _SINGLE_KEY.search(text) else [_STRICT]
    if _is_closed(text):
        readings.append(_BLIND)  # quotes that do not pair: then braces alone count
    for tokens in readings:
        found = [(_repaired(text[start:end]), end) for start, end in _flat(text, tokens)]
        if objects := [(value, end) for value, end in found if isinstance(value, dict) and value]:
            return objects
    return []


def _is_closed(text: str) -> bool:
    """Neither cut off, as far as brackets tell, nor with strings that may hold JSON of their own."""
    pairs = ("{", "}"), ("[", "]")
    return r"\"" not in text and all(text.count(opening) == text.count(closing) for opening, closing in pairs)


def _repaired(text: str) -> Any:
    """One object as JSON, as a literal of Python's (read, not run), or as json-repair makes it out."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    try:
        return json_repair.loads(text)
    except (ValueError, RecursionError):  # brackets in brackets, hundreds deep: a model that repeats itself
        return None


def _flat(text: str, tokens: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Where the innermost {...} lie, as far as `tokens` tell strings from braces."""
    start: int | None = None
    for match in tokens.finditer(text):
        if match.group() == "{":
            start = match.start()
        elif match.group() == "}" and start is not None:
            yield start, match.end()
            start = None
