"""ReDiff's drafts with corrections -> raw rows that bring their correction word for word.

    {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nDescribe."},
     {"from": "gpt", "value": "A red rring."}], "revise": [{"org": "rring", "target": "ring"}]}   (conversations)
    {"img": "a.jpg", "ques": "Describe.", "ans": "A red ring.", "pred": "A red rring.", "revise": "right"}   (pred)
    -> RawRow(image="a.jpg", prompt="Describe.", reference="A red ring.", correction=RawCorrection(...))

`revise`: a list of segments; the expert's reply as text (read as replies are: code fences and all); [] or "right"
(nothing is wrong); missing or null (nobody has looked).

The reference is the answer where the row has one. Else it is the draft with its segments applied, or a right draft
itself. Only a text with no known fault may be learned from as a clean one: where a segment does not apply (it is not
there exactly once, changes nothing, or overlaps an earlier one), or where nobody has looked, the row brings its
correction and no sample.

Whatever the columns of a correction cannot say (other keys, null instead of nothing, other spellings) is kept in
`extra`, which wins when the row is written again: see `layouts`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from core.errors import RowError
from core.ingest.conversations import without_system
from core.ingest.layouts import JsonObject, with_extra
from core.ingest.llava import turns_of
from core.ingest.reading import Row, image_at, record_rows, text_at, valid_text, without_placeholder
from core.ingest.records import Json
from core.ingest.rows import RawCorrection, RawRow

Segments = tuple[tuple[str, str], ...]


def rows(path: Path) -> Iterator[Row]:
    """The drafts of a file, in order; a record that is none becomes one `BadRow`."""
    return record_rows(path, parse)


def parse(place: str, record: JsonObject) -> list[Row]:
    """The row of one record.

    Raises:
        RowError: no_draft, empty_draft, many_answers, bad_revise, bad_segment, or what conversations and images are
            rejected for.
    """
    if "conversations" in record:
        layout, image = "conversations", image_at(record, "image")
        question, draft = _only_exchange(record)
        answer = None
    elif "pred" in record:
        layout, image = "pred", image_at(record, "img")
        question, draft = text_at(record, "ques"), text_at(record, "pred")
        answer = text_at(record, "ans") if record.get("ans") is not None else None
    else:
        raise RowError("no_draft", f"neither `conversations` nor `pred` is among the keys {', '.join(record)}")
    if not draft:
        raise RowError("empty_draft")
    verdict, segments = _revision(record.get("revise"))
    correction = RawCorrection(
        layout=layout,
        question=question,
        answer=answer,
        draft=draft,
        verdict=verdict,
        segments=segments,
        extra=None,
    )
    correction = replace(correction, extra=with_extra(correction, image, record))
    reference = answer or (corrected(draft, segments) if verdict else None) or ""
    prompt = without_placeholder(question, image)
    return [RawRow(place=place, image=image, prompt=prompt, reference=reference, correction=correction)]


def corrected(draft: str, segments: Segments) -> str | None:
    """The draft with all segments applied; None if one cannot be: see the top of this file.

    Example: "A red red cat.", [("red red", "red"), ("cat", "fox")] -> "A red fox."
    """
    taken: list[tuple[int, int, str]] = []
    for org, target in segments:
        start = draft.find(org)
        end = start + len(org)
        unique = org and start >= 0 and draft.find(org, start + 1) < 0
        if not unique or org == target or any(start < last and first < end for first, last, _ in taken):
            return None
        taken.append((start, end, target))
    for start, end, target in sorted(taken, reverse=True):
        draft = draft[:start] + target + draft[end:]
    return draft


def _only_exchange(record: JsonObject) -> tuple[str, str]:
    spoken = without_system(turns_of(record))
    if len(spoken) != 2:
        raise RowError("many_answers", f"{len(spoken)} turns: it is unclear which answer `revise` is about")
    return valid_text(spoken[0][1], "question"), valid_text(spoken[1][1], "draft")


def _revision(revise: Json) -> tuple[str | None, Segments]:
    """Verdict and segments."""
    if revise is None:
        return None, ()
    items: list[Json] = revise if isinstance(revise, list) else _reply(revise)
    segments = tuple(_segment(item) for item in items)
    return ("revised" if segments else "right"), segments


def _reply(revise: Json) -> list[Json]:
    """The segments of an expert's reply as it came."""
    if not isinstance(revise, str):
        raise RowError("bad_revise", f"expected segments or a text, found {type(revise).__name__}")
    if revise == "right":
        return []
    from core.expert.reply import parse_reply  # here, because only few files need it

    reply = parse_reply(revise)
    if reply.verdict == "failed":
        raise RowError("bad_revise", f"{', '.join(reply.problems)}: {revise}")
    return [{"org": segment.org, "target": segment.target} for segment in reply.segments]


def _segment(item: Json) -> tuple[str, str]:
    if not isinstance(item, dict) or "org" not in item or "target" not in item:
        raise RowError("bad_segment", f"expected org and target, found {item!r}")
    return valid_text(item["org"], "org"), valid_text(item["target"], "target")
