"""Where a segment of text becomes tokens: the only place.

The expert answers in text, `(org, target)`; training needs one target id a position. A segment is located by its char
offsets inside the response (never in the prompt), where it must occur exactly once, widened to whole tokens, and its
replacement is encoded in context. Two tiers:

- `equal`    the replacement has as many tokens as what it replaces (the published filter);
- `re-diff`  it has not, but neighbouring changes of length cancel, or the end-of-text fill absorbs them. The revised
             response is compared with the draft token by token, and a change of length may move at most
             `window` tokens before it is cancelled.

Invariant: decoding `target_ids` gives the draft with exactly the accepted replacements; a position outside the accepted
runs keeps its id, except that everything after the text is end-of-text.

Reasons of rejected segments, in the order in which they are checked:
    parse_error      not two strings that Unicode can write, or nothing to look for
    no_op            target equals org
    special_token    the target holds a special token, or a word the tokenizer cannot spell (its unknown token)
    in_prompt        not in the response but in the prompt
    not_found        in neither
    ambiguous        more than once in the response, overlapping occurrences counted
    overlap          shares a char with an earlier segment of the same reply (the first one named wins)
    length_mismatch  its change of length is not cancelled within the window, or the text would leave no room for one
                     end-of-text token

Surrounding white space of org and target is not theirs: ("red ", "blue") replaces the word and keeps the space. An
empty target deletes org together with one neighbouring space.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import polars as pl

from core.expert.settings import AlignmentSettings
from core.rediff import Edit, Run, Span, TextCodec, apply_edits, compatible, runs_of, splice, with_leading_space

__all__ = [
    "AlignedSegment",
    "Alignment",
    "AlignmentSettings",
    "DraftTokens",
    "Segment",
    "TextCodec",
    "align",
    "tier_shares",
]

Tier = Literal["equal", "re-diff"]


class Segment(NamedTuple):
    """One correction of the expert: replace the only occurrence of `org` in the draft by `target`."""

    org: str
    target: str


@dataclass(frozen=True, kw_only=True)
class DraftTokens:
    """A response of L tokens and the chars that each covers: [char_start, char_end) of `text`, -1 past its end."""

    text: str
    prompt: str
    token_ids: Sequence[int]
    char_start: Sequence[int]
    char_end: Sequence[int]

    def __post_init__(self) -> None:
        if not len(self.token_ids) == len(self.char_start) == len(self.char_end):
            raise ValueError("token_ids, char_start and char_end differ in length")


@dataclass(frozen=True, kw_only=True)
class AlignedSegment:
    """What became of a segment. Spans are half-open, in the draft's chars and tokens; -1: not located."""

    org: str
    target: str
    reason: str | None = None
    char_start: int = -1
    char_end: int = -1
    token_start: int = -1
    token_end: int = -1
    tier: Tier | None = None


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """`target_ids` (L,) and `text`: the draft with the accepted segments applied. `segments`: one per segment given."""

    target_ids: list[int]
    text: str
    segments: list[AlignedSegment]

    @property
    def accepted(self) -> int:
        """How many segments were accepted."""
        return sum(segment.reason is None for segment in self.segments)


def align(
    draft: DraftTokens,
    segments: Sequence[tuple[object, object]],
    *,
    codec: TextCodec,
    settings: AlignmentSettings | None = None,
) -> Alignment:
    """Turn the expert's segments into target ids for the whole response; see the module's docstring.

    Example: "a red ring" with [("red", "blue")] -> target_ids of "a blue ring", then end-of-text; one segment, `equal`.
    """
    window = (settings or AlignmentSettings()).window
    spans = _token_spans(draft)
    old, length = list(draft.token_ids[: len(spans)]), len(draft.token_ids)
    room = length - len(old) - 1  # one end-of-text token must stay
    results = [AlignedSegment(org=_written(org), target=_written(target)) for org, target in segments]
    edits = _locate(draft, segments, codec, results)
    while True:
        runs = runs_of(draft.text, spans, edits, codec)
        for run in runs:
            _note(results, run.edits, token_start=run.start, token_end=run.end)
        kept = _keep(runs, compatible(runs, old, room=room, window=window), codec, results)
        if len(kept) == len(edits):
            break
        edits = kept  # what was rejected was part of its neighbours' context: encode again without it
    ids, text = splice(old, runs), apply_edits(draft.text, edits)
    if edits and not codec.spells(ids, text):
        _note(results, edits, reason="length_mismatch")
        ids, text, runs = old, draft.text, []
    for run in runs:
        _note(results, run.edits, tier="re-diff" if run.growth else "equal")
    return Alignment(target_ids=codec.ended(ids, length), text=text, segments=results)


def tier_shares(revisions: pl.DataFrame) -> dict[str, float]:
    """Share of the expert's segments per tier or reason over a Revisions frame, and what re-diff adds (`recovered`).

    `recovered` is re-diff / (re-diff + length_mismatch): the share of what the equal-length filter drops that is kept.
    """
    segments = revisions.select(pl.col("segments").explode()).drop_nulls().unnest("segments")
    if segments.is_empty():
        return {}
    outcomes = segments.select(pl.coalesce("reason", "tier").alias("outcome")).group_by("outcome").len().sort("outcome")
    counts: dict[str, int] = dict(outcomes.iter_rows())
    unequal = counts.get("re-diff", 0) + counts.get("length_mismatch", 0)
    shares = {name: count / segments.height for name, count in counts.items()}
    return shares | {"recovered": counts.get("re-diff", 0) / unequal if unequal else 0.0}


def _token_spans(draft: DraftTokens) -> list[Span]:
    """Char spans of the tokens up to the end of the text; a token that stands for no char is an empty span."""
    length = max((i + 1 for i, start in enumerate(draft.char_start) if start >= 0), default=0)
    spans: list[Span] = []
    for start, end in zip(draft.char_start[:length], draft.char_end[:length], strict=True):
        last = spans[-1][1] if spans else 0
        spans.append((start, end) if start >= 0 else (last, last))
    return with_leading_space(draft.text, spans)


def _note(results: list[AlignedSegment], edits: Sequence[Edit], **changes: Any) -> None:
    """Write what became known of the segments behind `edits`."""
    for edit in edits:
        results[edit.index] = replace(results[edit.index], **changes)


def _locate(
    draft: DraftTokens, segments: Sequence[tuple[object, object]], codec: TextCodec, results: list[AlignedSegment]
) -> list[Edit]:
    """The edits whose place is certain, in the order of the text; all other segments get their reason."""
    edits: list[Edit] = []
    for index, (org, target) in enumerate(segments):
        if reason := _fault(org, target, draft, codec):
            results[index] = replace(results[index], reason=reason)
            continue
        start = draft.text.index(str(org)) + len(str(org)) - len(str(org).lstrip())
        edit = Edit(index, start, start + len(str(org).strip()), str(target).strip())
        _note(results, [edit], char_start=edit.start, char_end=edit.end)
        if any(edit.start < other.end and other.start < edit.end for other in edits):
            _note(results, [edit], reason="overlap")
        else:
            edits.append(edit)
    return _with_deleted_spaces(draft.text, sorted(edits, key=lambda edit: edit.start))


def _written(value: object) -> str:
    """What a segment says, as text that can be stored: JSON can spell halves of surrogate pairs."""
    return str(value).encode(errors="backslashreplace").decode()


def _fault(org: object, target: object, draft: DraftTokens, codec: TextCodec) -> str | None:
    """Why (org, target) cannot be located, or None."""
    if not isinstance(org, str) or not isinstance(target, str) or not org.strip():
        return "parse_error"
    if (org, target) != (_written(org), _written(target)):
        return "parse_error"
    if org.strip() == target.strip():
        return "no_op"
    if codec.is_special(target):
        return "special_token"
    first = draft.text.find(org)
    if first < 0:
        return "in_prompt" if org in draft.prompt else "not_found"
    return "ambiguous" if draft.text.find(org, first + 1) >= 0 else None


def _with_deleted_spaces(text: str, edits: list[Edit]) -> list[Edit]:
    """Deletions take one neighbouring space along, the one before if there is one that no other edit took."""
    grown: list[Edit] = []
    for edit in edits:
        floor = grown[-1].end if grown else 0
        before = edit.start > floor and text[edit.start - 1].isspace()
        after = edit.end < len(text) and text[edit.end].isspace()
        if not edit.target and before:
            edit = replace(edit, start=edit.start - 1)
        elif not edit.target and after:
            edit = replace(edit, end=edit.end + 1)
        grown.append(edit)
    return grown


def _keep(runs: list[Run], standing: list[Run], codec: TextCodec, results: list[AlignedSegment]) -> list[Edit]:
    """The edits of the runs that stand and hold no special id; the others get their reason."""
    kept: list[Edit] = []
    for run in runs:
        if codec.forbidden_ids.intersection(run.ids):
            _note(results, run.edits, reason="special_token")
        elif run not in standing:
            _note(results, run.edits, reason="length_mismatch")
        else:
            kept += run.edits
    return kept
