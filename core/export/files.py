"""Files that appear whole or not at all, and the images beside them."""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from core.errors import InputError, StoreError
from core.export.source import Source
from core.ingest.images import FORMATS
from core.ingest.json_stream import Json

SUFFIXES = (".json", ".jsonl")
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm"}
_REMEMBERED = 8192


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when it is complete. Raises InputError if it cannot be written."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if partial.is_file():
            partial.unlink()


def cannot_write(path: Path, error: OSError) -> InputError:
    """The same error, with what to do."""
    return InputError(f"cannot write {path}: {error.strerror or error}; choose another place, or free some space")


@contextmanager
def writing_rows(path: Path) -> Iterator[Callable[[Json], None]]:
    r"""A function that writes one row: a line of a .jsonl file, else an element of a JSON array.

    UTF-8 without escapes, e.g. '[\n{"a": "é"},\n{"a": "🎈"}\n]\n'; a row with a lone surrogate is written in ASCII.
    """
    lines = path.suffix.lower() == ".jsonl"
    opening, between, closing = ("", "\n", "\n") if lines else ("[\n", ",\n", "\n]\n")
    with writing(path) as file:
        separator = opening

        def write(row: Json) -> None:
            nonlocal separator
            file.write(separator.encode() + _encoded(row))
            separator = between

        yield write
        file.write((closing if separator == between else "" if lines else "[]\n").encode())


def _encoded(row: Json) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(row).encode()


class Place:
    """Where an export goes: one .json or .jsonl file, or a folder for the file and its images."""

    def __init__(self, target: Path, name: str, source: Source) -> None:
        """In a folder the rows are in `name`.json."""
        alone = target.suffix.lower() in SUFFIXES
        self.rows = target if alone else target / f"{name}.json"
        self._folder = None if alone else target
        self._source = source
        self._names: OrderedDict[str, str] = OrderedDict()

    def image(self, sha: str, name: str | None = None) -> str:
        """The path of an image relative to the folder, e.g. "images/0a1b....jpg"; the image is there afterwards.

        name: the path to use instead.
        """
        if name and self._folder is None:
            return name
        key = f"{sha} {name}"
        if key not in self._names:
            data = self._source.image_bytes(sha)
            path = name or f"images/{sha}.{extension_of(data)}"
            if self._folder is not None:
                self._put(self._folder, path, data)
            self._names[key] = path
            if len(self._names) > _REMEMBERED:  # rows of one image stand close together
                self._names.popitem(last=False)
        return self._names[key]

    def _put(self, folder: Path, path: str, data: bytes) -> None:
        at = folder / path
        if not at.resolve().is_relative_to(folder.resolve()) or at == self.rows:
            raise InputError(f"the image path {path!r} leads out of {folder}: write to a .json file, without images")
        if not at.is_file():
            with writing(at) as file:
                file.write(data)
        elif at.read_bytes() != data:
            raise InputError(f"{at} is there already, and another image: choose an empty folder, or a .json file")


def extension_of(data: bytes) -> str:
    """The usual extension of an encoded image, e.g. "jpg". Raises StoreError for what is no image."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            kind = image.format or ""
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise StoreError(f"an image in the store cannot be decoded: {error}") from error
    return _EXTENSIONS.get(kind, kind.lower())
