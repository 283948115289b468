"""What a format's reader yields: rows as they were found in a file, and rows that it could make nothing of."""

from dataclasses import dataclass
from typing import NamedTuple

from core.errors import RowError


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


class RawRow(NamedTuple):
    """One prompt and its answer as a format's reader found them: `place` in the file, image path inside the root."""

    place: str
    image: str | None
    prompt: str
    reference: str
    """The correct answer; "" in a row that brings a correction and no sample."""
    image_bytes: bytes | None = None
    """The encoded image, where the file itself holds it."""
    pair: RawPair | None = None
    correction: RawCorrection | None = None


class BadRow(NamedTuple):
    """A row that the format's reader could not make sense of."""

    place: str
    error: RowError
