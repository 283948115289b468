"""The metadata.jsonl of an image folder (the layout of Hugging Face's `imagefolder`) -> raw rows, one a caption.

    {"file_name": "a.jpg", "text": "A red ring."} -> RawRow(place="metadata.jsonl:0", image="a.jpg", prompt="", ...)
    {"image": "a.jpg", "captions": ["One.", "Two."]} -> two rows, "metadata.jsonl:0" and "metadata.jsonl:0#1"

The image is `file_name` or `image`; its captions are `caption`, `captions` or `text`, each a text or a list of texts;
a `prompt` or `question` is used if there is one, else the settings' default prompt.
"""

from collections.abc import Iterator
from pathlib import Path

from core.errors import RowError
from core.ingest.layouts import JsonObject
from core.ingest.reading import Row, checked, image_at, record_rows, valid_text, without_placeholder
from core.ingest.records import Json
from core.ingest.rows import RawRow

IMAGES = ("file_name", "image")
CAPTIONS = ("caption", "captions", "text")
PROMPTS = ("prompt", "question")


def rows(path: Path) -> Iterator[Row]:
    """The captions of a file, in order; a record without one becomes one `BadRow`."""
    return record_rows(path, parse)


def parse(place: str, record: JsonObject) -> Iterator[Row]:
    """The rows of one record. Raises RowError: no_caption, or what `image_at` and `valid_text` raise."""
    image = image_at(record, *IMAGES)
    prompt = next((valid_text(record[key], key) for key in PROMPTS if record.get(key) is not None), "")
    captions = _captions(record)
    for index, caption in enumerate(captions):

        def one(at: str, _: JsonObject, caption: Json = caption) -> list[Row]:
            reference = valid_text(caption, "caption")
            return [RawRow(place=at, image=image, prompt=without_placeholder(prompt, image), reference=reference)]

        yield from checked(place if index == 0 else f"{place}#{index}", record, one)


def _captions(record: JsonObject) -> list[Json]:
    found = next((record[key] for key in CAPTIONS if record.get(key) is not None), None)
    captions: list[Json] = found if isinstance(found, list) else [found]
    if found is None or not captions:
        raise RowError("no_caption", f"none of {', '.join(CAPTIONS)} holds one; the keys are {', '.join(record)}")
    return captions
