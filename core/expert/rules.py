"""The reference expert's rule: what to change in a draft, given the reference answer, in text alone.

    reference  "two items on a black canvas . ... a red ring sits in the top left corner ."
    draft      "two items on a black canvas . ... a red ring sits in the top right corner ."
    revision   [Segment(org="right", target="left")]

If the reference describes a scene, the draft becomes the true and complete caption of that scene that is nearest to it,
of as many words wherever possible: other true wordings stand. A worked answer gets the reference as its result (see
core.expert.answer_rules). Any other text becomes the reference.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from core.alignment import Segment
from core.expert.answer_rules import with_right_answer
from core.expert.scene_rules import nearest_caption
from core.worlds.scenes import scene_of


@dataclass(frozen=True, slots=True)
class _Edit:
    """Words [start, end) of the draft become words [new_start, new_end) of the revision."""

    start: int
    end: int
    new_start: int
    new_end: int


@dataclass(frozen=True, slots=True)
class _Window:
    """Words [start, end) of the draft, which occur in it once and hold the edits from `first` to `last`."""

    start: int
    end: int
    first: _Edit
    last: _Edit


def revise_by_rule(question: str, reference: str, draft: str) -> list[Segment]:
    """The segments that make `draft` right; [] if it already is.

    Each `org` occurs exactly once in the draft, none overlap, and all of them applied give the revision (white space
    aside). An empty draft has nothing to quote: the one segment ("", reference) says what should stand there, and
    alignment counts it as a reject. `question` is part of what an expert is asked; no rule needs it.
    """
    spans = [match.span() for match in re.finditer(r"\S+", draft)]
    if not spans:
        return [Segment("", reference)]
    words = [draft[start:end] for start, end in spans]
    scene = scene_of(reference)
    if scene is None:
        revision = (with_right_answer(reference, draft) or reference).split()
        return _segments(draft, spans, revision, _diff(words, revision))
    if scene_of(" ".join(words)) == scene:
        return []
    revision = nearest_caption(scene, words, max(len(words), len(reference.split())))
    return _segments(draft, spans, revision, _in_place(words, revision))


def _diff(words: list[str], revision: list[str]) -> list[_Edit]:
    """Edits between two texts of any kind: the changes that longest common blocks of words leave over."""
    opcodes = SequenceMatcher(None, words, revision, autojunk=False).get_opcodes()
    return [_Edit(*bounds) for tag, *bounds in opcodes if tag != "equal"]


def _in_place(words: list[str], revision: list[str]) -> list[_Edit]:
    """Edits between two texts compared position by position; what one has beyond the other's end is the last edit."""
    common = min(len(words), len(revision))
    edits: list[_Edit] = []
    for i in range(common):
        if words[i] != revision[i]:
            start = edits.pop().start if edits and edits[-1].end == i else i
            edits.append(_Edit(start, i + 1, start, i + 1))
    if len(words) != len(revision):
        start = edits.pop().start if edits and edits[-1].end == common else common
        edits.append(_Edit(start, len(words), start, len(revision)))
    return edits


def _segments(
    draft: str, spans: Sequence[tuple[int, int]], revision: Sequence[str], edits: Sequence[_Edit]
) -> list[Segment]:
    windows: list[_Window] = []
    for edit in edits:
        window = _unique_window(draft, spans, edit)
        # What contains words that occur once occurs once itself, so windows that share a word can be joined.
        while windows and windows[-1].end > window.start:
            before = windows.pop()
            start, end = min(before.start, window.start), max(before.end, window.end)
            window = _Window(start, end, before.first, window.last)
        windows.append(window)
    segments = []
    for window in windows:
        new_start = window.first.new_start - (window.first.start - window.start)
        new_end = window.last.new_end + (window.end - window.last.end)
        org = draft[spans[window.start][0] : spans[window.end - 1][1]]
        segments.append(Segment(org, " ".join(revision[new_start:new_end])))
    return segments


def _unique_window(draft: str, spans: Sequence[tuple[int, int]], edit: _Edit) -> _Window:
    """The edit with as few neighbouring words as make its text occur once in the draft."""
    fewest = 1 if edit.start == edit.end else 0
    for extra in range(fewest, len(spans) + 1):
        for left in range(extra + 1):
            start, end = edit.start - left, edit.end + extra - left
            if start >= 0 and end <= len(spans) and _occurs_once(draft, spans[start][0], spans[end - 1][1]):
                return _Window(start, end, edit, edit)
    raise AssertionError("the whole draft occurs once in itself")


def _occurs_once(draft: str, start: int, end: int) -> bool:
    text = draft[start:end]
    return draft.find(text) == start and draft.find(text, start + 1) == -1
