"""OpenAI chat messages -> raw rows, one for each question and its answer.

    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.jpg"}},
                                               {"type": "text", "text": "Describe."}]},
                  {"role": "assistant", "content": "A red ring."}]}
    -> RawRow(place="data.json:0", image="a.jpg", prompt="Describe.", reference="A red ring.")

Decisions, beside those of `core.ingest.conversations`: the image stands in a part of a message (`image_url`, or `image`
with a path) or in the row's `images` (or `image`); a part {"type": "image"} that names nothing stands for that one.
Named twice, an image counts once. Text parts are joined by newlines. URLs, data: URLs among them, are passed on as they
are: whoever resolves the path rejects them.
"""

from collections.abc import Iterator
from pathlib import Path

from core.errors import RowError
from core.ingest.conversations import Turn, exchanges, speaker_of
from core.ingest.layouts import JsonObject
from core.ingest.reading import Row, image_at, record_rows
from core.ingest.records import Json

_TEXT = ("text", "input_text", "output_text")
_IMAGE = ("image_url", "image", "input_image")


def rows(path: Path) -> Iterator[Row]:
    """The rows of a file, in order; what is no chat becomes one `BadRow`."""
    return record_rows(path, parse)


def parse(place: str, record: JsonObject) -> list[Row]:
    """The rows of one record. Raises RowError."""
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RowError("no_conversation", f"`messages` is {type(messages).__name__}, or empty")
    named = dict.fromkeys(filter(None, [image_at(record, "images", "image")]))
    turns = [_turn(message, named) for message in messages]
    if len(named) > 1:
        raise RowError("many_images", f"{len(named)} images in one row")
    return exchanges(place, next(iter(named), None), turns)


def _turn(message: Json, named: dict[str, None]) -> Turn:
    """Speaker and text; images are added to `named`."""
    if not isinstance(message, dict):
        raise RowError("bad_turn", f"expected an object, found {type(message).__name__}")
    speaker = speaker_of(message.get("role"))
    content = message.get("content")
    if isinstance(content, str):
        return speaker, content
    if not isinstance(content, list):
        raise RowError("text_not_a_string", f"the {speaker} message holds {type(content).__name__}")
    return speaker, "\n".join(text for part in content if (text := _text_of(part, named)) is not None)


def _text_of(part: Json, named: dict[str, None]) -> str | None:
    """The text of a part, or None for an image."""
    if not isinstance(part, dict):
        raise RowError("bad_turn", f"expected a part of a message, found {type(part).__name__}")
    kind = part.get("type")
    if kind in _TEXT:
        if not isinstance(text := part.get("text"), str):
            raise RowError("text_not_a_string", f"a part holds {type(text).__name__}")
        return text
    if kind not in _IMAGE:
        raise RowError("unknown_part", f"a part of type {kind!r}")
    source = next((part[key] for key in ("image_url", "image", "url", "path") if part.get(key) is not None), None)
    if isinstance(source, dict):
        source = source.get("url", source.get("path"))
    if source is None and kind != "image":
        raise RowError("bad_image_field", f"a part of type {kind!r} names no image")
    if source is not None and not isinstance(source, str):
        raise RowError("bad_image_field", f"expected a path, found {type(source).__name__}")
    if source:
        named[source] = None
    return None
