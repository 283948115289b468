"""What the readers of all formats share: records in, rows out, and a reason for each record that is none."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from core.errors import RowError
from core.ingest.layouts import JsonObject
from core.ingest.records import Json, read_records
from core.ingest.rows import BadRow, RawRow

PLACEHOLDER = "<image>"

Row: TypeAlias = RawRow | BadRow
Parse: TypeAlias = Callable[[str, JsonObject], Iterable[Row]]
"""(place, record) -> its rows. Raises RowError if the record cannot be used."""


def record_rows(path: Path, parse: Parse) -> Iterator[Row]:
    """The rows of a JSON or JSONL file, in order; what `parse` cannot use becomes one `BadRow`."""
    for record in read_records(path):
        yield from checked(record.place, record.value, parse)


def checked(place: str, record: Json | RowError, parse: Parse) -> Iterator[Row]:
    """The rows of one record, or the `BadRow` it becomes."""
    try:
        if isinstance(record, RowError):
            raise record
        if not isinstance(record, dict):
            raise RowError("not_a_record", f"expected an object, found {type(record).__name__}")
        rows = list(parse(place, record))
    except RowError as error:
        rows = [BadRow(place=place, error=error)]
    yield from rows


def text_at(record: JsonObject, key: str) -> str:
    """The text at `key`. Raises RowError: missing_text, text_not_a_string or invalid_unicode."""
    if key not in record:
        raise RowError("missing_text", f"there is no `{key}`")
    return valid_text(record[key], key)


def valid_text(value: Json, name: str) -> str:
    """`value`, if it is text that can be written. Raises RowError: text_not_a_string or invalid_unicode."""
    if not isinstance(value, str):
        raise RowError("text_not_a_string", f"`{name}` holds {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError("invalid_unicode", f"`{name}`, character {error.start}: {error.reason}") from error
    return value


def image_at(record: JsonObject, *keys: str) -> str | None:
    """The image's path at the first of `keys` that is there: a path, a list of one path, or nothing.

    Raises:
        RowError: many_images, or bad_image_field.
    """
    image = next((record[key] for key in keys if key in record), None)
    if isinstance(image, list):
        if len(image) > 1:
            raise RowError("many_images", f"{len(image)} images in one row")
        image = image[0] if image else None
    if image is None or isinstance(image, str):
        return image or None
    raise RowError("bad_image_field", f"expected a path, found {type(image).__name__}")


def without_placeholder(prompt: str, image: str | None) -> str:
    r"""What is asked: "<image>\nWhat is this?" -> "What is this?".

    The placeholder may be left out, but not stand there more often than there are images.

    Raises:
        RowError: no_image or placeholder_count.
    """
    placeholders = prompt.count(PLACEHOLDER)
    if placeholders and image is None:
        raise RowError("no_image", f"the prompt has {PLACEHOLDER}, the row names no image")
    if placeholders > 1:
        raise RowError("placeholder_count", f"{placeholders} {PLACEHOLDER} for one image")
    return prompt.replace(PLACEHOLDER, "").strip()
