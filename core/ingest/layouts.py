"""ReDiff's two row layouts, written from the columns of a correction: what the reader reads and the export writes.

    conversations: {"image", "conversations", "revise"}        revise of a draft that is right: []
    pred:          {"img", "ques", "ans", "pred", "revise"}    revise of a draft that is right: "right"

Without an image, an answer or a verdict the key is left out. `extra` holds the other keys of a row that was read, and
those of the keys above whose value was written in another way; its values win. `id` comes first, as ReDiff has it.
"""

import json
from collections.abc import Sequence
from typing import TypeAlias

from core.errors import RowError
from core.ingest.json_stream import Json
from core.ingest.rows import RawCorrection

JsonObject: TypeAlias = dict[str, Json]


def written(correction: RawCorrection, image: str | None) -> JsonObject:
    """The row that `correction` and the image's path stand for.

    Example: RawCorrection(layout="pred", question="Q", answer=None, draft="D", verdict="right", extra='{"id": 7}', ...)
    -> {"id": 7, "img": "a.jpg", "ques": "Q", "pred": "D", "revise": "right"}
    """
    row: JsonObject = {"id": None}
    if correction.layout == "pred":
        row |= {"img": image, "ques": correction.question, "ans": correction.answer, "pred": correction.draft}
        row |= {"revise": _revise(correction.verdict, correction.segments, right="right")}
        absent = {"img": image, "ans": correction.answer, "revise": correction.verdict}
    else:
        row |= {"image": image, "conversations": conversation(correction.question, correction.draft)}
        row |= {"revise": _revise(correction.verdict, correction.segments, right=[])}
        absent = {"image": image, "revise": correction.verdict}
    extra: JsonObject = json.loads(correction.extra) if correction.extra else {}
    left_out = {"id"} | {key for key, value in absent.items() if value is None}
    return {key: value for key, value in (row | extra).items() if key in extra or key not in left_out}


def with_extra(correction: RawCorrection, image: str | None, record: JsonObject) -> str | None:
    """What `extra` has to hold so that `written` gives `record` back; None if it needs nothing.

    Raises:
        RowError: bad_json, for values that are nested too deeply to be written.
    """
    plain = written(correction, image)
    try:
        extra = {key: value for key, value in record.items() if key not in plain or not _same(plain[key], value)}
        return json.dumps(extra) if extra else None  # in ASCII: a lone surrogate stays what it is
    except RecursionError as error:
        raise RowError("bad_json", "nested too deeply") from error


def conversation(question: str, answer: str) -> list[Json]:
    """A question and its answer as LLaVA writes them."""
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _revise(verdict: str | None, segments: Sequence[tuple[str, str]], *, right: Json) -> Json:
    if verdict == "right":
        return right
    return [{"org": org, "target": target} for org, target in segments]


def _same(one: Json, other: Json) -> bool:
    """Equal as they are written, the order of keys included: 1 is neither 1.0 nor true."""
    return json.dumps(one) == json.dumps(other)
