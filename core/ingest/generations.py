r"""Drafts of a language model as evaluation scripts leave them -> raw rows that bring a draft nobody has looked at.

    {"generations": [{"question": "2 + 3?", "generations": "\n5<|eot_id|><|endoftext|>", "ground_truth": 5}], ...}
    {"question": "2 + 3?", "generations": "\n5<|eot_id|><|endoftext|>", "ground_truth": 5}            (or one a line)
    -> RawRow(prompt="2 + 3?", reference="5", correction=RawCorrection(draft="\n5", answer="5", ...))

A draft ends before its first end-of-text token, which these files spell out. A truth that is no text is written as
JSON. What else an object of the first form says of the run (its lengths, its metrics) is passed over.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from core.errors import InputError, RowError
from core.ingest.layouts import JsonObject
from core.ingest.reading import Row, checked, text_at, valid_text
from core.ingest.records import LINE_SUFFIXES, Json, read_members, read_records
from core.ingest.rows import RawCorrection, RawRow

LIST = "generations"
END_TOKENS = ("<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "</s>", "<eos>", "[EOS]")
_OWN = {"question", "generations", "ground_truth"}


def rows(path: Path) -> Iterator[Row]:
    """The drafts of a file, in order; a record that is none becomes one `BadRow`."""
    if is_object(path):
        drafts = (value for key, value in read_members(path) if key == LIST)
        for number, value in enumerate(drafts):
            yield from checked(f"{path.name}:{number}", value, parse)
    else:
        for record in read_records(path):
            yield from checked(record.place, record.value, parse)


def is_object(path: Path) -> bool:
    """Is the file one object that holds a list of drafts?"""
    if path.suffix.lower() in LINE_SUFFIXES:
        return False
    try:
        return isinstance(next((value for key, value in read_members(path) if key == LIST), None), dict)
    except InputError:  # an array, or lines
        return False


def parse(place: str, record: JsonObject) -> list[Row]:
    """The row of one record.

    Raises:
        RowError: missing_text, text_not_a_string, invalid_unicode, empty_draft or no_answer.
    """
    question, written = text_at(record, "question"), text_at(record, "generations")
    draft = _before_the_end(written)
    if not draft.strip():
        raise RowError("empty_draft")
    if record.get("ground_truth") is None:
        raise RowError("no_answer", "there is no `ground_truth`")
    answer = _as_text(record["ground_truth"])
    others = {key: value for key, value in record.items() if key not in _OWN}
    correction = RawCorrection(
        layout="pred",
        question=question,
        answer=answer,
        draft=draft,
        verdict=None,
        segments=(),
        extra=json.dumps(others) if others else None,
    )
    return [RawRow(place=place, image=None, prompt=question, reference=answer, correction=correction)]


def _before_the_end(text: str) -> str:
    ends = [text.find(token) for token in END_TOKENS]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def _as_text(value: Json) -> str:
    return valid_text(value, "ground_truth") if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
