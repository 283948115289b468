"""Rows of any format -> the Samples table: images checked and stored, text checked, duplicates dropped, split chosen.

A format's reader yields `RawRow`s and knows nothing of images on disk; this module knows nothing of formats.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from core.errors import InputError, RowError
from core.ingest.images import decode, read_image, resolve_image
from core.ingest.settings import IngestSettings
from core.seeds import stream_key
from data_contracts import Rejects, Samples
from data_contracts.samples import SPLITS

STAGE = "ingest"


@dataclass(frozen=True, kw_only=True, slots=True)
class RawPair:
    """A hallucination that comes with a row: the reference's chars [start, end) replaced by `target` are `changed`."""

    changed: str
    start: int
    end: int
    target: str
    kind: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RawCorrection:
    """Corrections that come with a row, verbatim; the fields are those of the table `corrections`."""

    layout: str
    question: str
    answer: str | None
    draft: str
    verdict: str | None
    segments: tuple[tuple[str, str], ...]
    extra: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRow:
    """One prompt and its answer as a format's reader found them: `place` in the file, image path inside the root."""

    place: str
    image: str | None
    prompt: str
    reference: str
    pair: RawPair | None = None
    correction: RawCorrection | None = None


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that the format's reader could not make sense of."""

    place: str
    error: RowError


@dataclass(frozen=True, kw_only=True)
class IngestBatch:
    """A batch of the stream: `samples` (Samples) and `rejects` (Rejects) together are exactly `rows_in` rows."""

    samples: pl.DataFrame
    rejects: pl.DataFrame
    rows_in: int


@dataclass(frozen=True, kw_only=True)
class CaptionLimit:
    """A limit on the reference in tokens of the tokenizer that will read it."""

    count: Callable[[str], int]
    max_tokens: int


def split_of(group: str, settings: IngestSettings) -> str:
    """The split of an image (its sha256), by a hash: stable under any order, number or slicing of the rows."""
    share = stream_key("ingest", "split", group) / 2**64
    if share < settings.train:
        return SPLITS[0]
    return SPLITS[1] if share < settings.train + settings.dev else SPLITS[2]


class Ingestor:
    """Turns raw rows into samples, one batch at a time. Remembers what it has seen, so that duplicates are found.

    Memory: 16 bytes and a set entry for each accepted row.
    """

    def __init__(
        self,
        *,
        images: Path | None,
        put_image: Callable[[bytes], str],
        settings: IngestSettings,
        caption_limit: CaptionLimit | None = None,
    ) -> None:
        """`put_image` stores encoded bytes and returns their sha256.

        Raises:
            InputError: the image root is not a folder.
        """
        if images is not None and not images.is_dir():
            raise InputError(f"the image folder {images} does not exist or is not a folder")
        self._images = images
        self._put_image = put_image
        self._settings = settings
        self._limit = caption_limit
        self._seen: set[bytes] = set()
        self._stored: OrderedDict[Path, str | RowError] = OrderedDict()

    def batches(self, rows: Iterable[RawRow | BadRow]) -> Iterator[IngestBatch]:
        """Stream batches of at most `settings.batch_rows` rows; every row is in one of the two tables."""
        good: list[dict[str, str | None]] = []
        bad: list[dict[str, str]] = []
        for row in rows:
            try:
                good.append(self._sample(row))
            except RowError as error:
                bad.append(_reject(row.place, error))
            if len(good) + len(bad) == self._settings.batch_rows:
                yield _batch(good, bad)
                good, bad = [], []
        if good or bad:
            yield _batch(good, bad)

    def _sample(self, row: RawRow | BadRow) -> dict[str, str | None]:
        if isinstance(row, BadRow):
            raise row.error
        prompt = self._text(row.prompt, "prompt") or self._settings.default_prompt
        reference = self._text(row.reference, "caption")
        if not prompt:
            raise RowError("empty_prompt")
        if not reference:
            raise RowError("empty_caption")
        if self._limit is not None and (tokens := self._limit.count(reference)) > self._limit.max_tokens:
            raise RowError("caption_too_long", f"{tokens} tokens, limit {self._limit.max_tokens}")
        image_sha = self._image(row.image)
        digest = hashlib.blake2b("\x1f".join((image_sha or "", prompt, reference)).encode(), digest_size=16).digest()
        if digest in self._seen:
            raise RowError("duplicate", "same image, prompt and caption as an earlier row")
        self._seen.add(digest)
        return {
            "sample_id": digest.hex(),
            "image_sha": image_sha,
            "prompt": prompt,
            "reference": reference,
            "split": split_of(image_sha or prompt, self._settings),
            "source": _valid(row.place),
        }

    def _text(self, text: str, what: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowError("invalid_unicode", f"{what}, character {error.start}: {error.reason}") from error
        if len(text) > self._settings.max_chars:
            raise RowError(f"{what}_too_long", f"{len(text)} characters, limit {self._settings.max_chars}")
        if found := next((token for token in self._settings.control_tokens if token in text), None):
            raise RowError("control_token", f"{what} contains {found}")
        return text.strip()

    def _image(self, relative: str | None) -> str | None:
        if not relative:
            if self._settings.text_only:
                return None
            raise RowError("no_image", "the row names no image")
        if self._images is None:
            raise RowError("missing_image", f"{_valid(relative)}: no image folder was given")
        path = resolve_image(self._images, relative)
        if path not in self._stored:
            self._stored[path] = self._store(path)
            if len(self._stored) > 8192:  # many captions of one image stand close together
                self._stored.popitem(last=False)
        result = self._stored[path]
        if isinstance(result, RowError):
            raise RowError(result.reason, result.detail)
        return result

    def _store(self, path: Path) -> str | RowError:
        try:
            data = read_image(path, max_bytes=self._settings.max_bytes)
            decode(data, max_pixels=self._settings.max_pixels)
        except RowError as error:
            return RowError(error.reason, f"{path.name}: {error.detail}")
        return self._put_image(data)


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _reject(place: str, error: RowError) -> dict[str, str]:
    return {
        "stage": STAGE,
        "row_id": _valid(place),
        "outcome": "rejected",
        "reason": error.reason,
        "detail": _valid(error.detail),
    }


def _batch(good: list[dict[str, str | None]], bad: list[dict[str, str]]) -> IngestBatch:
    samples = pl.DataFrame(
        {name: [row.get(name) for row in good] for name in Samples.column_names()}, schema=Samples.create_empty().schema
    )
    rejects = pl.DataFrame(bad, schema=Rejects.create_empty().schema)
    return IngestBatch(samples=samples, rejects=rejects, rows_in=len(good) + len(bad))
