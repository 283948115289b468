"""LLaVA and ShareGPT conversations -> raw rows, one for each question and its answer.

    {"id": 7, "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nDescribe."},
                                                  {"from": "gpt", "value": "A red ring."}]}
    -> RawRow(place="data.json:0", image="a.jpg", prompt="Describe.", reference="A red ring.")

Decisions: the `<image>` placeholder may be left out, but not stand there more often than there are images; a second
question about the same image ("data.json:0#1") becomes a row of its own, without the turns before it; system turns
are dropped; keys that the format does not know are ignored; `role`/`content` is read as `from`/`value`.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from core.errors import RowError
from core.ingest.records import Json, read_records
from core.ingest.samples import BadRow, CaptionLimit, IngestBatch, Ingestor, RawRow
from core.ingest.settings import IngestSettings

PLACEHOLDER = "<image>"
_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}


def ingest_llava(
    path: Path,
    *,
    images: Path | None,
    put_image: Callable[[bytes], str],
    settings: IngestSettings,
    caption_limit: CaptionLimit | None = None,
) -> Iterator[IngestBatch]:
    """Stream a LLaVA/ShareGPT JSON or JSONL file as batches of samples and rejects.

    Args:
        path: the JSON array or the JSON lines.
        images: the root of the image paths in the file.
        put_image: stores the original bytes of a decodable image and returns their sha256.
        settings: shares of the splits and limits.
        caption_limit: rejects captions of more tokens (caption_too_long).

    Raises:
        InputError: the file or the image folder cannot be used at all.
    """
    ingestor = Ingestor(images=images, put_image=put_image, settings=settings, caption_limit=caption_limit)
    return ingestor.batches(llava_rows(path))


def llava_rows(path: Path) -> Iterator[RawRow | BadRow]:
    """The rows of a file, in order; what is no LLaVA record becomes one `BadRow`."""
    for record in read_records(path):
        if isinstance(record.value, RowError):
            yield BadRow(place=record.place, error=record.value)
            continue
        try:
            rows = _rows(record.place, record.value)
        except RowError as error:
            yield BadRow(place=record.place, error=error)
            continue
        yield from rows


def _rows(place: str, record: Json) -> list[RawRow | BadRow]:
    if not isinstance(record, dict):
        raise RowError("not_a_record", f"expected an object, found {type(record).__name__}")
    image = _image_of(record)
    turns = _turns(record)
    placeholders = sum(text.count(PLACEHOLDER) for speaker, text in turns if speaker == "human")
    if placeholders and image is None:
        raise RowError("no_image", f"the prompt has {PLACEHOLDER}, the row names no image")
    if placeholders > 1:
        raise RowError("placeholder_count", f"{placeholders} {PLACEHOLDER} for one image")
    rows: list[RawRow | BadRow] = []
    for index in range(0, len(turns), 2):
        pair = place if index == 0 else f"{place}#{index // 2}"
        if index + 1 == len(turns):
            rows.append(BadRow(place=pair, error=RowError("no_gpt_turn", "the last question has no answer")))
            continue
        prompt = turns[index][1].replace(PLACEHOLDER, "").strip()
        rows.append(RawRow(place=pair, image=image, prompt=prompt, reference=turns[index + 1][1]))
    return rows


def _image_of(record: dict[str, Json]) -> str | None:
    image = record.get("image")
    if isinstance(image, list):
        if len(image) > 1:
            raise RowError("many_images", f"{len(image)} images in one row")
        image = image[0] if image else None
    if image is None or isinstance(image, str):
        return image or None
    raise RowError("bad_image_field", f"expected a path, found {type(image).__name__}")


def _turns(record: dict[str, Json]) -> list[tuple[str, str]]:
    """(speaker, text) of each turn, speakers alternating and beginning with the human."""
    conversation = record.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise RowError("no_conversation", f"`conversations` is {type(conversation).__name__}, or empty")
    turns = [turn for turn in map(_turn, conversation) if turn[0] != "system"]
    speakers = [speaker for speaker, _ in turns]
    if not speakers or speakers[0] != "human":
        raise RowError("no_human_turn", "the conversation does not begin with a human turn")
    if "gpt" not in speakers:
        raise RowError("no_gpt_turn", "no answer in the conversation")
    if any(first == second for first, second in itertools.pairwise(speakers)):
        raise RowError("turns_not_alternating", " ".join(speakers))
    return turns


def _turn(turn: Json) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise RowError("bad_turn", f"expected an object, found {type(turn).__name__}")
    speaker = turn.get("from", turn.get("role"))
    text = turn.get("value", turn.get("content"))
    if not isinstance(speaker, str) or speaker not in _SPEAKERS:
        raise RowError("unknown_speaker", repr(speaker))
    if not isinstance(text, str):
        raise RowError("text_not_a_string", f"the {speaker} turn holds {type(text).__name__}")
    return _SPEAKERS[speaker], text
