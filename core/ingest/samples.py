"""Rows of any format -> the Samples table: images checked and stored, text checked, duplicates dropped, split chosen.

A format's reader yields `RawRow`s and knows nothing of where images are; this module knows nothing of formats.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import polars as pl

from core.errors import RowError
from core.ingest.images import check, inside
from core.ingest.notebook import ImageFate, Notebook
from core.ingest.rows import BadRow, RawCorrection, RawPair, RawRow
from core.ingest.settings import IngestSettings
from core.ingest.sources import ImageSource
from core.seeds import stream_key
from data_contracts import Contract, Corrections, HallucinationPairs, Rejects, Samples
from data_contracts.samples import SPLITS

STAGE = "ingest"


@dataclass(frozen=True, kw_only=True)
class IngestBatch:
    """A batch of the stream: `ok` rows and the `rejects` (Rejects) together are exactly `rows_in` rows.

    What a row brings is its sample (Samples), its pair (HallucinationPairs) or its correction (Corrections); a sample
    that several pairs or corrections share is written once, and a correction may come without one.
    """

    samples: pl.DataFrame
    pairs: pl.DataFrame
    corrections: pl.DataFrame
    rejects: pl.DataFrame
    rows_in: int

    @property
    def ok(self) -> int:
        """Rows that were accepted."""
        return self.rows_in - self.rejects.height


@dataclass(frozen=True, kw_only=True)
class CaptionLimit:
    """A limit on the reference in tokens of the tokenizer that will read it."""

    count: Callable[[str], int]
    max_tokens: int


@dataclass(slots=True)
class _Row:
    """A row on its way through the checks."""

    raw: RawRow
    prompt: str
    reference: str
    sha: str | None = None
    sample: bytes = b""
    whole: bytes = b""


@dataclass(slots=True)
class _Tables:
    """The rows of a batch, column by column names."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    corrections: list[dict[str, Any]] = field(default_factory=list)


def split_of(group: str, settings: IngestSettings) -> str:
    """The split of an image (its sha256), by a hash: stable under any order, number or slicing of the rows."""
    share = stream_key("ingest", "split", group) / 2**64
    if share < settings.train:
        return SPLITS[0]
    return SPLITS[1] if share < settings.train + settings.dev else SPLITS[2]


class Ingestor:
    """Turns raw rows into samples, one batch at a time; images are checked and stored by several threads.

    Memory is that of a batch: what was seen before is in the notebook, on disk.
    """

    def __init__(
        self,
        *,
        images: ImageSource | None,
        put_image: Callable[[bytes], str],
        settings: IngestSettings,
        caption_limit: CaptionLimit | None = None,
        notebook: Notebook | None = None,
        threads: int = 2,
    ) -> None:
        """`put_image` stores encoded bytes and returns their sha256; it is called from several threads."""
        self._images = images
        self._put_image = put_image
        self._settings = settings
        self._limit = caption_limit
        self._notebook = notebook or Notebook()
        self._threads = threads
        self._openings = {token[:1] for token in settings.control_tokens}

    def batches(self, rows: Iterable[RawRow | BadRow]) -> Iterator[IngestBatch]:
        """Stream batches of at most `settings.batch_rows` rows; every row is accepted or in the rejects."""
        stream = iter(rows)
        with ThreadPoolExecutor(self._threads, thread_name_prefix="image") as pool:
            while batch := list(islice(stream, self._settings.batch_rows)):
                yield self._batch(batch, pool)

    def _batch(self, rows: Sequence[RawRow | BadRow], pool: ThreadPoolExecutor) -> IngestBatch:
        checked = [self._checked(row) for row in rows]
        fates = self._fates([row.raw for row in checked if isinstance(row, _Row)], pool)
        checked = [row if isinstance(row, RowError) else self._placed(row, fates) for row in checked]
        good = [row for row in checked if isinstance(row, _Row)]
        fresh = self._notebook.unseen(_digest63(digest) for row in good for digest in {row.sample, row.whole})
        tables, rejects = _Tables(), []
        for raw, row in zip(rows, checked, strict=True):
            if isinstance(row, _Row) and _digest63(row.whole) not in fresh:
                row = RowError("duplicate", "says the same as an earlier row about the same image")
            if isinstance(row, RowError):
                rejects.append(_reject(raw.place, row))
                continue
            fresh.discard(_digest63(row.whole))
            self._write(row, tables, new_sample=row.sample == row.whole or _digest63(row.sample) in fresh)
            fresh.discard(_digest63(row.sample))
        return IngestBatch(
            samples=_frame(Samples, tables.samples),
            pairs=_frame(HallucinationPairs, tables.pairs),
            corrections=_frame(Corrections, tables.corrections),
            rejects=_frame(Rejects, rejects),
            rows_in=len(rows),
        )

    def _checked(self, row: RawRow | BadRow) -> _Row | RowError:
        """The row with its texts looked at."""
        if isinstance(row, BadRow):
            return row.error
        try:
            prompt = self._text(row.prompt, "prompt") or self._settings.default_prompt
            reference = self._text(row.reference, "caption")
            if row.pair is not None:
                self._text(row.pair.changed, "changed caption")
            if row.correction is not None:
                _check_unicode(row.correction)
        except RowError as error:
            return error
        if not prompt:
            return RowError("empty_prompt")
        if not reference and row.correction is None:
            return RowError("empty_caption")
        if self._limit is not None and (tokens := self._limit.count(reference)) > self._limit.max_tokens:
            return RowError("caption_too_long", f"{tokens} tokens, limit {self._limit.max_tokens}")
        return _Row(row, prompt, reference)

    def _text(self, text: str, what: str) -> str:
        _check_encodes(text, what)
        if len(text) > self._settings.max_chars:
            raise RowError(f"{what.split()[-1]}_too_long", f"{len(text)} characters, limit {self._settings.max_chars}")
        if any(char in text for char in self._openings):  # few texts have one, and there are many tokens
            found = next((token for token in self._settings.control_tokens if token in text), None)
            if found:
                raise RowError("control_token", f"{what} contains {found}")
        return text.strip()

    def _fates(self, rows: Sequence[RawRow], pool: ThreadPoolExecutor) -> dict[str, ImageFate]:
        """What becomes of the images of some rows; those that are not known yet are looked at side by side."""
        wanted = {name: row for row in rows if (name := self._image_name(row))}
        if not wanted:
            return {}
        known = self._notebook.fates(wanted)
        missing = [row for name, row in wanted.items() if name not in known]
        for first in range(0, len(missing), _NOTED):
            some = missing[first : first + _NOTED]
            found = {self._image_name(row): fate for row, fate in zip(some, pool.map(self._fate, some), strict=True)}
            self._notebook.note(found)
            known |= found
        return known

    def _image_name(self, row: RawRow) -> str:
        """What an image goes by in the notebook: its path, or its content; "" if the row has or shall have none."""
        if row.image_bytes is not None:
            return f"sha256:{hashlib.sha256(row.image_bytes).hexdigest()}"
        left_out = self._settings.text_only and self._images is None
        return "" if left_out else (row.image or "").encode("unicode_escape").decode()

    def _fate(self, row: RawRow) -> ImageFate:
        try:
            data = row.image_bytes
            if data is not None and len(data) > self._settings.max_bytes:
                raise RowError("image_too_large", f"{len(data)} bytes, limit {self._settings.max_bytes}")
            if data is None:
                inside(row.image or "")
                if self._images is None:
                    raise RowError("missing_image", f"{_valid(row.image or '')}: no image folder was given")
                data = self._images.read(row.image or "", max_bytes=self._settings.max_bytes)
            check(data, max_pixels=self._settings.max_pixels)
        except RowError as error:
            return ImageFate(None, error.reason, _valid(f"{row.image or 'image'}: {error.detail}"))
        return ImageFate(self._put_image(data))

    def _placed(self, row: _Row, fates: dict[str, ImageFate]) -> _Row | RowError:
        """The row with its image, and the digests that tell it from others."""
        if name := self._image_name(row.raw):
            fate = fates[name]
            if fate.sha is None:
                return RowError(fate.reason, fate.detail)
            row.sha = fate.sha
        elif not self._settings.text_only:
            return RowError("no_image", "the row names no image")
        row.sample = row.whole = _digest(row.sha or "", row.prompt, row.reference)
        if row.raw.pair is not None or row.raw.correction is not None:
            row.whole = _digest(row.sample.hex(), repr(row.raw.pair), repr(row.raw.correction))
        return row

    def _write(self, row: _Row, tables: _Tables, *, new_sample: bool) -> None:
        raw, sample_id = row.raw, row.sample.hex()
        if new_sample and row.reference:
            tables.samples.append(
                {
                    "sample_id": sample_id,
                    "image_sha": row.sha,
                    "prompt": row.prompt,
                    "reference": row.reference,
                    "split": split_of(row.sha or _valid(raw.image or sample_id), self._settings),
                    "source": _valid(raw.place),
                }
            )
        if raw.pair is not None:
            tables.pairs.append(_pair_row(row, raw.pair))
        if raw.correction is not None:
            tables.corrections.append(_correction_row(row, raw.correction))


_NOTED = 256
"""Images whose fate is written down together: what a kill costs at most."""


def _pair_row(row: _Row, pair: RawPair) -> dict[str, Any]:
    return {
        "pair_id": row.whole.hex(),
        "sample_id": row.sample.hex(),
        "kind": pair.kind,
        "original_caption": row.reference,
        "changed_caption": pair.changed,
        "solution_original": row.reference[pair.start : pair.end],
        "solution_target": pair.target,
        "start": pair.start,
        "end": pair.end,
    }


def _correction_row(row: _Row, correction: RawCorrection) -> dict[str, Any]:
    return {
        "correction_id": row.whole.hex(),
        "sample_id": row.sample.hex() if row.reference else None,
        "image_sha": row.sha,
        "image": row.raw.image,
        "question": correction.question,
        "answer": correction.answer,
        "draft": correction.draft,
        "verdict": correction.verdict,
        "segments": [{"org": org, "target": target} for org, target in correction.segments],
        "layout": correction.layout,
        "extra": correction.extra,
    }


def _check_unicode(correction: RawCorrection) -> None:
    texts = [correction.question, correction.answer, correction.draft, correction.extra]
    for text in [*texts, *(part for segment in correction.segments for part in segment)]:
        _check_encodes(text or "", "correction")


def _check_encodes(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError("invalid_unicode", f"{what}, character {error.start}: {error.reason}") from error


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b("\x1f".join(parts).encode("utf-8", "replace"), digest_size=16).digest()


def _digest63(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big") >> 1


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


def _frame(schema: type[Contract], rows: list[dict[str, Any]]) -> pl.DataFrame:
    names = schema.column_names()
    return pl.DataFrame({name: [row.get(name) for row in rows] for name in names}, schema=schema.create_empty().schema)
