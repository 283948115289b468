"""How a decoder setting is written in one line: `key=value` options after the pace and the policy. Free of torch."""

import json
import re
from collections.abc import Mapping
from typing import Any

Item = str | int
"""A token or a text, or the id of a token."""

_TEXT = r'"(?:[^"\\]|\\.)*"'
_OPTION = re.compile(rf' (?P<key>\w+)=(?P<value>(?:{_TEXT}|[^\s"])+)')
_ITEM = re.compile(rf'(?:^|,)({_TEXT}|[^,"]*)')
_BARE = re.compile(r'[^\s,"\d-][^\s,"]*')

OTHER_NAMES = {
    "block_size": "block_length",
    "revise_start": "start",
    "revise_topk": "topk",
    "cfg": "cfg_scale",
    "stopping_criteria": "stop",
    "generation_suffix": "suffix",
    "fake_ans": "beginning",
    "suppress_tokens": "suppress",
    "begin_suppress_tokens": "late",
}
"""What the published codes call an option -> what it is called here."""


def write_options(options: Mapping[str, Any]) -> str:
    """E.g. {"margin": 0.1, "stop": ("a b", 7)} -> ' margin=0.1 stop="a b",7'."""
    return "".join(f" {key}={_written(value)}" for key, value in options.items())


def read_options(text: str) -> dict[str, Any] | None:
    """What `write_options` wrote, values as text but lists of tokens as tuples; None if `text` is not of that form."""
    found: dict[str, Any] = {}
    end = 0
    for match in _OPTION.finditer(text):
        if match.start() != end:
            return None
        found[OTHER_NAMES.get(match["key"], match["key"])] = match["value"]
        end = match.end()
    return found if end == len(text) else None


def read_items(value: str) -> tuple[Item, ...]:
    """'"a b",7,<eos>' -> ("a b", 7, "<eos>")."""
    return tuple(_item(item) for item in _ITEM.findall(value))


def _item(text: str) -> Item:
    if text.startswith('"'):
        return str(json.loads(text))
    return int(text) if text.isdigit() else text


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_written_item(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _written_item(item: Item) -> str:
    if isinstance(item, int):
        return str(item)
    return item if _BARE.fullmatch(item) else json.dumps(item, ensure_ascii=False)
