"""Edits of a draft's text as runs of its tokens, and which runs can stand together in a response of fixed length.

Used by core.alignment alone, which documents the method. An edit replaces chars; a run replaces tokens. `old` are
the T ids of the draft's text in a response of L positions; `new` ids are those of the revised text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import TYPE_CHECKING

from core.models.special_tokens import end_of_turn

if TYPE_CHECKING:  # importing transformers takes seconds, which the reference expert's rules have no use for
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]


@dataclass(frozen=True)
class TextCodec:
    """A fast tokenizer as alignment needs it: ids with char spans, and the ids and strings no target may hold.

    turn_end_id: what ends an answer before the fill with eos_id; None: eos_id does.
    """

    tokenizer: "PreTrainedTokenizerBase"
    eos_id: int
    forbidden_ids: frozenset[int]
    forbidden_texts: tuple[str, ...]
    turn_end_id: int | None = None

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "TextCodec":
        """Read the special tokens once; asking the tokenizer for them is slow.

        Raises:
            ValueError: if the tokenizer is not a fast one (no char offsets) or has no end-of-text token.
        """
        if not tokenizer.is_fast or tokenizer.eos_token_id is None:
            raise ValueError("alignment needs a fast tokenizer with an eos token")
        special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        eos, turn_end = int(tokenizer.eos_token_id), end_of_turn(tokenizer)
        return cls(tokenizer, eos, frozenset(special), tuple(special.values()), turn_end)

    def ended(self, ids: Sequence[int], length: int) -> list[int]:
        """A response of `length` tokens: the text's `ids`, the end of the turn, end of text up to the last position."""
        fill = [self.eos_id] * (length - len(ids))
        if fill and self.turn_end_id is not None:
            fill[0] = self.turn_end_id
        return [*ids, *fill]

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids of the whole `text` and the char span of each, leading white space included."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(encoded["input_ids"]), with_leading_space(text, list(encoded["offset_mapping"]))

    def spells(self, ids: Sequence[int], text: str) -> bool:
        """Whether `ids` read as `text`, white space and the tokenizer's own normalisation of `text` aside."""
        expected = {_squash(text), _squash(self._decode(self.encode(text)[0], skip=False))}
        return any(_squash(self._decode(ids, skip=skip)) in expected for skip in (False, True))

    def is_special(self, target: str) -> bool:
        """Whether `target` holds a special token's string, or encodes to a special id (the unknown token is one)."""
        if any(text in target for text in self.forbidden_texts):
            return True
        return bool(self.forbidden_ids.intersection(self.encode(target)[0]))

    def _decode(self, ids: Sequence[int], *, skip: bool) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip, clean_up_tokenization_spaces=False))


@dataclass(frozen=True)
class Edit:
    """A located segment: `target` replaces the chars [start, end). `index` is its place in the reply."""

    index: int
    start: int
    end: int
    target: str


@dataclass(frozen=True)
class Run:
    """Draft tokens [start, end) become `ids`, because of `edits`."""

    start: int
    end: int
    ids: tuple[int, ...]
    edits: tuple[Edit, ...]

    @property
    def growth(self) -> int:
        """Tokens gained (negative: lost)."""
        return len(self.ids) - (self.end - self.start)


def with_leading_space(text: str, spans: list[Span]) -> list[Span]:
    """Give white space that no token covers to the token after it, so that trimmed and whole offsets agree."""
    widened, last = [], 0
    for start, end in spans:
        gap = last < start < end and text[last:start].isspace()
        widened.append((last if gap else start, end))
        last = max(last, end)
    return widened


def apply_edits(text: str, edits: Sequence[Edit]) -> str:
    """`text` with all edits applied; `edits` are sorted and disjoint."""
    pieces, last = [], 0
    for edit in edits:
        pieces += [text[last : edit.start], edit.target]
        last = edit.end
    return "".join([*pieces, text[last:]])


def runs_of(text: str, spans: list[Span], edits: Sequence[Edit], codec: TextCodec) -> list[Run]:
    """One run per edit, or per group of edits that share tokens; ids are encoded in the context of all edits.

    `spans`: the chars of `text` that each of the draft's T tokens covers.
    """
    if not edits:
        return []
    new_ids, new_spans = codec.encode(apply_edits(text, edits))
    groups = [[edit] for edit in edits]
    while True:
        ranges = [
            _widen(group, shift, spans, new_spans, len(text))
            for group, shift in zip(groups, _shifts(groups), strict=True)
        ]
        clash = next((i for i, (a, b) in enumerate(pairwise(ranges)) if b[0] < a[1]), None)
        if clash is None:
            break
        groups[clash : clash + 2] = [groups[clash] + groups[clash + 1]]
    return [
        Run(start, end, tuple(new_ids[new_start:new_end]), tuple(group))
        for group, (start, end, new_start, new_end) in zip(groups, ranges, strict=True)
    ]


def _shifts(groups: list[list[Edit]]) -> list[Span]:
    """Per group: what to add to a char position of the draft before it, and after it, for the revised text."""
    shifts, before = [], 0
    for group in groups:
        after = before + sum(len(edit.target) - (edit.end - edit.start) for edit in group)
        shifts.append((before, after))
        before = after
    return shifts


def _widen(
    group: list[Edit], shift: Span, spans: list[Span], new_spans: list[Span], size: int
) -> tuple[int, int, int, int]:
    """Tokens of the draft, and of the revised text, that cover the group's chars and nothing else: two index ranges.

    Both tokenisations must have a boundary at both ends; where one has not, the run takes the whole token.
    """
    left, right = group[0].start, group[-1].end
    while True:
        before = (left, right)
        for start, end in spans:
            if start < right and end > left:
                left, right = min(left, start), max(right, end)
        for start, end in new_spans:
            if start < right + shift[1] and end > left + shift[0]:
                left, right = min(left, start - shift[0]), max(right, end - shift[1])
        left, right = max(left, 0), min(right, size)
        if (left, right) == before:
            break
    return (*_covered(spans, left, right), *_covered(new_spans, left + shift[0], right + shift[1]))


def _covered(spans: list[Span], left: int, right: int) -> Span:
    """Index range of the tokens inside the chars [left, right); an empty range stands where they would be."""
    start = sum(end <= left for _, end in spans)
    return start, max(start, sum(begin < right for begin, _ in spans))


def splice(old: Sequence[int], runs: Sequence[Run], start: int = 0, end: int | None = None) -> list[int]:
    """`old[start:end]` with the runs applied; `runs` lie inside and are sorted."""
    ids: list[int] = []
    for run in runs:
        ids += [*old[start : run.start], *run.ids]
        start = run.end
    return [*ids, *old[start:end]]


def displaced(old: Sequence[int], new: Sequence[int]) -> int:
    """Tokens of the longest stretch over which `new` is out of step with `old`.

    E.g. "a b c d" -> "a x b c": x is inserted and moves b and c until the loss of d cancels it: 4 tokens.
    """
    longest = stretch = shift = 0
    for _, i1, i2, j1, j2 in SequenceMatcher(None, list(old), list(new), autojunk=False).get_opcodes():
        after = shift + (j2 - j1) - (i2 - i1)
        stretch = stretch + max(i2 - i1, j2 - j1) if shift or after else 0
        longest, shift = max(longest, stretch), after
        if not shift:
            stretch = 0
    return longest


def compatible(runs: Sequence[Run], old: Sequence[int], *, room: int, window: int) -> list[Run]:
    """The runs that can stand together, keeping as many segments as possible.

    A run of equal length stands alone. Runs of other lengths stand as a group when their changes of length cancel, or
    when the text's end gives way by at most `room` tokens; nothing may be moved by more than `window` tokens. Dynamic
    programme over the runs; a state is (first token of the open group or None, change of length so far) and holds the
    best choice that leads there. `old`: the draft's T text ids.
    """
    states: dict[_State, _Choice] = {(None, 0): (0, [])}
    for run in runs:
        following = {
            state: choice
            for state, choice in states.items()
            if state[0] is None or run.start - choice[1][-1].end <= window
        }
        for (start, shift), (kept, chosen) in list(following.items()):
            state = _join(start, shift, [*chosen, run], old, window)
            if state is not None and kept + len(run.edits) > following.get(state, _NOTHING)[0]:
                following[state] = (kept + len(run.edits), [*chosen, run])
        states = following
    best = states[None, 0]
    for (start, shift), choice in states.items():
        if start is None or shift > room or choice[0] <= best[0]:
            continue
        if _moved(start, len(old), choice[1], old) <= window:
            best = choice
    return best[1]


_State = tuple[int | None, int]
_Choice = tuple[int, list[Run]]
_NOTHING: _Choice = (-1, [])


def _join(start: int | None, shift: int, chosen: list[Run], old: Sequence[int], window: int) -> _State | None:
    """The state after the last run of `chosen` joined; None if it closes a group that moved too much."""
    run = chosen[-1]
    shift += run.growth
    if start is None and shift == 0:
        return (None, 0)
    start = run.start if start is None else start
    if shift:
        return (start, shift)
    return (None, 0) if _moved(start, run.end, chosen, old) <= window else None


def _moved(start: int, end: int, chosen: list[Run], old: Sequence[int]) -> int:
    group = [run for run in chosen if run.start >= start]
    return displaced(old[start:end], splice(old, group, start, end))


def _squash(text: str) -> str:
    return "".join(text.split())
