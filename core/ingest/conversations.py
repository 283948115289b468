"""Turns of a conversation about one image -> a row for each question and its answer.

Decisions: the `<image>` placeholder may be left out, but not stand there more often than there are images; a second
question about the same image ("data.json:0#1") becomes a row of its own, without the turns before it; system turns
are dropped.
"""

import itertools
from collections.abc import Sequence

from core.errors import RowError
from core.ingest.reading import Row, without_placeholder
from core.ingest.rows import BadRow, RawRow

Turn = tuple[str, str]
"""Who speaks ("human", "gpt" or "system"), and the text."""

_SPEAKERS = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "system": "system",
    "developer": "system",
}


def speaker_of(name: object) -> str:
    """The speaker that a format calls `name`. Raises RowError: unknown_speaker."""
    if not isinstance(name, str) or name not in _SPEAKERS:
        raise RowError("unknown_speaker", repr(name))
    return _SPEAKERS[name]


def without_system(turns: Sequence[Turn]) -> list[Turn]:
    """The turns that are no instruction to the model, checked: human and gpt alternate, the human begins.

    Raises:
        RowError: no_human_turn, no_gpt_turn or turns_not_alternating.
    """
    spoken = [turn for turn in turns if turn[0] != "system"]
    speakers = [speaker for speaker, _ in spoken]
    if not speakers or speakers[0] != "human":
        raise RowError("no_human_turn", "the conversation does not begin with a human turn")
    if "gpt" not in speakers:
        raise RowError("no_gpt_turn", "no answer in the conversation")
    if any(first == second for first, second in itertools.pairwise(speakers)):
        raise RowError("turns_not_alternating", " ".join(speakers))
    return spoken


def exchanges(place: str, image: str | None, turns: Sequence[Turn]) -> list[Row]:
    """A row for each question. Raises RowError: as `without_system`, no_image or placeholder_count.

    Example: [("human", "<image>What?"), ("gpt", "A ring."), ("human", "Where?"), ("gpt", "Left.")]
    -> "What?", "A ring." at `place` and "Where?", "Left." at `place`#1.
    """
    spoken = without_system(turns)
    without_placeholder("".join(text for speaker, text in spoken if speaker == "human"), image)  # one in all of them
    rows: list[Row] = []
    for index in range(0, len(spoken), 2):
        pair = place if index == 0 else f"{place}#{index // 2}"
        if index + 1 == len(spoken):
            rows.append(BadRow(place=pair, error=RowError("no_gpt_turn", "the last question has no answer")))
            continue
        prompt = without_placeholder(spoken[index][1], image)
        rows.append(RawRow(place=pair, image=image, prompt=prompt, reference=spoken[index + 1][1]))
    return rows
