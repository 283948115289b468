"""Parquet files -> raw rows. One batch of rows is in memory at a time, with no columns but those that are used.

The columns decide what a row is:
- `conversations`, `messages`, or `original_caption` and `changed_caption`: as in the JSON formats of these keys;
- else one of `reference`, `caption`, `captions`, `answer` or `text` (a text, or a list of texts: a row for each), and
  `prompt`, `question` or `problem`, if there is one (else the settings' default prompt is used).

The image is in `image`, `images`, `image_path` or `file_name`: a path, the encoded bytes, or {bytes, path} as Hugging
Face's datasets write images. Where there are bytes, the path is no more than a name.

    {"image": {"bytes": b"...", "path": "a.jpg"}, "caption": "A red ring."}
    -> RawRow(place="data.parquet:0", image="a.jpg", image_bytes=b"...", prompt="", reference="A red ring.")
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import InputError, RowError
from core.ingest import imagefolder, llava, messages, rediff, vicrit
from core.ingest.layouts import JsonObject
from core.ingest.reading import Parse, Row, checked
from core.ingest.rows import BadRow, RawRow

IMAGES = ("image", "images", "image_path", "file_name", "img")
PROMPTS = ("prompt", "question", "problem")
CAPTIONS = ("reference", "caption", "captions", "answer", "text")
_BATCH = 16
_BUFFER = 1 << 20  # without it, a whole column of a row group is in memory
_VICRIT = ("original_caption", "changed_caption", "solution_original", "solution_target")


def rows(path: Path) -> Iterator[Row]:
    """The rows of a file, in order; one that cannot be used becomes a `BadRow`.

    Raises:
        InputError: the file cannot be read as Parquet, or has none of the columns above; the message names those.
    """
    with _readable(path), pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
        columns, parse = _reading_of(path, file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(_BATCH, columns=list(dict.fromkeys(columns.values())), use_threads=False):
            for index in range(batch.num_rows):
                yield from _rows(f"{path.name}:{number}", batch, index, columns, parse)
                number += 1


def _reading_of(path: Path, names: Sequence[str]) -> tuple[dict[str, str], Parse]:
    """The columns to read, by the key that their value has for the parser, and the parser."""
    image = _first("image", IMAGES, names)
    if "revise" in names or "pred" in names:
        layout = ("id", "conversations", "ques", "ans", "pred", "revise")
        key = "image" if "conversations" in names else "img"
        return {name: name for name in layout if name in names} | _first(key, IMAGES, names), rediff.parse
    if "conversations" in names:
        return {"conversations": "conversations"} | image, llava.parse
    if "messages" in names:
        return {"messages": "messages"} | image, messages.parse
    if set(_VICRIT) <= set(names):
        kind = {"type": "type"} if "type" in names else {}
        return {name: name for name in _VICRIT} | kind | _first("problem", PROMPTS, names) | image, vicrit.parse
    caption = _first("captions", CAPTIONS, names)
    if not caption:
        raise InputError(
            f"{path} has the columns {', '.join(names)}; needed is one of {', '.join(CAPTIONS)}, or conversations, "
            f"messages or {' and '.join(_VICRIT)}"
        )
    return caption | _first("prompt", PROMPTS, names) | image, imagefolder.parse


def _first(key: str, wanted: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    return {key: next(name for name in wanted if name in names)} if set(wanted) & set(names) else {}


def _rows(place: str, batch: pa.RecordBatch, index: int, columns: dict[str, str], parse: Parse) -> Iterator[Row]:
    """The rows of one row of the batch."""
    try:
        record = {key: _value(batch, name, index) for key, name in columns.items()}
        key = "img" if "img" in columns else "image"
        path, data = _image(record.pop(key, None))
    except RowError as error:
        yield BadRow(place=place, error=error)
        return
    json: JsonObject = record | {key: path if data is None else path or "image"}
    for row in checked(place, json, parse):
        yield row._replace(image=path, image_bytes=data) if data is not None and isinstance(row, RawRow) else row


def _value(batch: pa.RecordBatch, name: str, index: int) -> Any:
    try:
        return batch.column(name)[index].as_py()
    except UnicodeDecodeError as error:
        raise RowError("invalid_unicode", f"column {name}: {error}") from error
    except (ValueError, OverflowError, pa.ArrowException) as error:  # a time that Python cannot hold, ...
        raise RowError("bad_value", f"column {name}: {error}") from error


def _image(value: Any) -> tuple[str | None, bytes | None]:
    """Path and bytes of an image as it stands in a column."""
    if isinstance(value, list):
        if len(value) > 1:
            raise RowError("many_images", f"{len(value)} images in one row")
        value = value[0] if value else None
    if isinstance(value, dict):
        path, data = value.get("path"), value.get("bytes")
    else:
        path, data = (None, value) if isinstance(value, bytes) else (value, None)
    if (path is None or isinstance(path, str)) and (data is None or isinstance(data, bytes)):
        return path or None, data
    raise RowError("bad_image_field", f"expected a path or bytes, found {type(value).__name__}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Faults of the file as a whole, with its name."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise InputError(f"{path} cannot be read as Parquet ({error}): it is damaged, or no Parquet file") from error
