"""JSON and JSONL files of any encoding as a stream of parsed values, each with its place in the file."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.errors import InputError, RowError
from core.ingest.json_stream import Json, JsonStream

__all__ = ["LINE_SUFFIXES", "Json", "Record", "read_members", "read_records"]

LINE_SUFFIXES = (".jsonl", ".ndjson")
_LONGEST_LINE = 1 << 27


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record of a file: `place` ("data.json:17", counted from 0), and its value or why it has none."""

    place: str
    value: Json | RowError


def read_records(path: Path) -> Iterator[Record]:
    """Stream the records of a JSON array, a single JSON object, or JSON lines (one record a line, empty lines skipped).

    The encoding (UTF-8, UTF-16, UTF-32, with or without BOM) is detected. Bytes that are not valid there survive as
    lone surrogates, so that the row that holds them can be rejected instead of the file. A line that is no JSON is a
    record with reason bad_json.

    Raises:
        InputError: the file is missing, empty, cut off within a character, or not JSON; the message says where.
    """
    encoding = _encoding_of(path)
    with _readable(path, encoding):
        if path.suffix.lower() in LINE_SUFFIXES or _starts_with_a_whole_object(path, encoding):
            yield from _lines(path, encoding)
        else:
            yield from _array(path, encoding)


def read_members(path: Path) -> Iterator[tuple[str, Json]]:
    """Stream one big JSON object: (key, element) for each element of its arrays, (key, value) for other members.

    Raises:
        InputError: as `read_records`, or the file holds no object.
    """
    encoding = _encoding_of(path)
    with _readable(path, encoding), path.open(encoding=encoding, errors="surrogateescape") as file:
        stream = JsonStream(file)
        yield from stream.members()
        stream.end()


@contextmanager
def _readable(path: Path, encoding: str) -> Iterator[None]:
    """Faults of the file as a whole, with its name."""
    try:
        yield
    except UnicodeError as error:  # of UTF-16 and UTF-32, which have no way to let a wrong byte survive
        raise InputError(
            f"{path} looks like {encoding} by its first bytes, but cannot be read as such ({error}): "
            "write it anew as UTF-8"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error


def _encoding_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not head.strip():
        raise InputError(f"{path} is empty")
    if head.startswith(b"\0") and (head[2:3] != b"\0" or not any(head)):  # not as UTF-16 and UTF-32 begin
        raise InputError(f"{path} begins with a NUL byte: it is damaged, or no text")
    return json.detect_encoding(head)


def _starts_with_a_whole_object(path: Path, encoding: str) -> bool:
    """Whether a file without a telling suffix is JSON lines: its first line that is not blank is an object."""
    with path.open(encoding=encoding, errors="surrogateescape") as file:
        while (first := file.read(1)).isspace():
            pass
        return first == "{" and isinstance(_parse(first + file.readline(_LONGEST_LINE)), dict)


def _lines(path: Path, encoding: str) -> Iterator[Record]:
    with path.open(encoding=encoding, errors="surrogateescape") as file:
        row = 0
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            value = _parse(line)
            if isinstance(value, RowError):
                value = RowError(value.reason, f"line {number}: {value.detail}")
            yield Record(place=f"{path.name}:{row}", value=value)
            row += 1


def _array(path: Path, encoding: str) -> Iterator[Record]:
    with path.open(encoding=encoding, errors="surrogateescape") as file:
        stream = JsonStream(file)
        if stream.begins_with("["):
            for row, item in enumerate(stream.elements()):
                yield Record(place=f"{path.name}:{row}", value=item)
        else:
            value = stream.value()
            if not isinstance(value, dict):
                raise InputError(
                    f"{path} holds a single {type(value).__name__}; expected a JSON array of rows, or JSON lines"
                )
            yield Record(place=f"{path.name}:0", value=value)
        stream.end()


def _parse(text: str) -> Json | RowError:
    try:
        value: Json = json.loads(text)
    except json.JSONDecodeError as error:
        return RowError("bad_json", f"{error.msg} at line {error.lineno} column {error.colno}")
    except RecursionError:
        return RowError("bad_json", "nested too deeply")
    except ValueError as error:  # an integer of thousands of digits
        return RowError("bad_json", str(error))
    return value
