"""Corrections, or our own drafts and their revisions -> ReDiff's rows.

Corrections that were read are written as they were read, in their own layout: the JSON values are the same, `extra`
included (core.ingest.layouts). The image's path is that of the row that was read.

Own drafts become {"id", "image", "conversations", "revise"}: the draft's text, and the segments that were accepted; for
a draft that is right the list is empty. Drafts whose revision failed or is unusable say nothing and are left out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.export.files import Place, writing_rows
from core.export.llava import asked
from core.export.lookup import Lookup
from core.export.source import Source
from core.ingest.json_stream import Json
from core.ingest.layouts import conversation, written
from core.ingest.rows import RawCorrection
from data_contracts import Corrections, Drafts, Revisions

_SAYING = ("right", "revised")


def write(source: Source, target: Path) -> int:
    """Write a .json or .jsonl file, or a folder with rediff.json and the images; returns the number of rows."""
    place, count = Place(target, "rediff", source), 0
    rows = _corrections(source, place) if Corrections.table in source.tables else _drafts(source, place)
    with writing_rows(place.rows) as write_row:
        for row in rows:
            write_row(row)
            count += 1
    return count


def _corrections(source: Source, place: Place) -> Iterator[Json]:
    for frame in source.frames(Corrections):
        for row in frame.iter_rows(named=True):
            if row["image_sha"] is not None:
                place.image(row["image_sha"], row["image"])
            yield written(_raw(row), row["image"])


def _raw(row: dict[str, Any]) -> RawCorrection:
    return RawCorrection(
        layout=row["layout"],
        question=row["question"],
        answer=row["answer"],
        draft=row["draft"],
        verdict=row["verdict"],
        segments=tuple((segment["org"], segment["target"]) for segment in row["segments"]),
        extra=row["extra"],
    )


def _drafts(source: Source, place: Place) -> Iterator[Json]:
    with Lookup(source.frames(Revisions), ("draft_id", "verdict", "segments")) as revisions:
        for frame in source.frames(Drafts):
            found = revisions.of(frame["draft_id"])
            for draft in frame.select("draft_id", "image_sha", "prompt", "text").iter_rows(named=True):
                revision = found.get(draft["draft_id"])
                if revision is None or revision["verdict"] not in _SAYING:
                    continue
                sha = draft["image_sha"]
                image: dict[str, Json] = {"image": place.image(sha)} if sha else {}
                turns = conversation(asked(draft["prompt"], sha), draft["text"])
                yield {"id": draft["draft_id"], **image, "conversations": turns, "revise": _accepted(revision)}


def _accepted(revision: dict[str, Any]) -> list[Json]:
    return [
        {"org": segment["org"], "target": segment["target"]}
        for segment in revision["segments"]
        if segment["reason"] is None
    ]
