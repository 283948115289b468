"""LLaVA and ShareGPT conversations -> raw rows, one for each question and its answer.

    {"id": 7, "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nDescribe."},
                                                  {"from": "gpt", "value": "A red ring."}]}
    -> RawRow(place="data.json:0", image="a.jpg", prompt="Describe.", reference="A red ring.")

Decisions, beside those of `core.ingest.conversations`: `role`/`content` is read as `from`/`value`; `images` is read as
`image`; keys that the format does not know are ignored.
"""

from collections.abc import Iterator
from pathlib import Path

from core.errors import RowError
from core.ingest.conversations import Turn, exchanges, speaker_of
from core.ingest.layouts import JsonObject
from core.ingest.reading import Row, image_at, record_rows
from core.ingest.records import Json


def rows(path: Path) -> Iterator[Row]:
    """The rows of a file, in order; what is no LLaVA record becomes one `BadRow`."""
    return record_rows(path, parse)


def parse(place: str, record: JsonObject) -> list[Row]:
    """The rows of one record. Raises RowError."""
    if record.get("revise") not in (None, [], "right"):
        raise RowError("revised_draft", "the answer is a draft with known faults: read the file as format rediff")
    return exchanges(place, image_at(record, "image", "images"), turns_of(record))


def turns_of(record: JsonObject) -> list[Turn]:
    """Speaker and text of each turn. Raises RowError: no_conversation, bad_turn, unknown_speaker, text_not_a_string."""
    conversation = record.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise RowError("no_conversation", f"`conversations` is {type(conversation).__name__}, or empty")
    return [_turn(turn) for turn in conversation]


def _turn(turn: Json) -> Turn:
    if not isinstance(turn, dict):
        raise RowError("bad_turn", f"expected an object, found {type(turn).__name__}")
    speaker = speaker_of(turn.get("from", turn.get("role")))
    text = turn.get("value", turn.get("content"))
    if not isinstance(text, str):
        raise RowError("text_not_a_string", f"the {speaker} turn holds {type(text).__name__}")
    return speaker, text
