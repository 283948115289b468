"""Judge a pair, whoever proposed it: one fluent change that is plainly false by all captions of the image.

`check_pair` accepts whatever the rules of caption_pairs make. What the lexicon does not know it cannot judge: then only
form, repetition and mentions count.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from core.corruption.caption_pairs import allowed
from core.corruption.caption_sites import GENDERED, NEARBY, Option, Site, number_options, option, swap_options
from core.corruption.caption_text import ARTICLES, WORD, Caption, article_faults, read_caption, repeats
from core.corruption.hallucination import PairKind
from core.corruption.lexicon import NUMBERS, Entry, load, same_meaning

_CONTROL = re.compile(
    r"<\|.*?\|>|<(?:/?s|image|pad|unk|mask|eot_id)>|\[(?:MASK|PAD|UNK|CLS|SEP|INST)\]|```", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class _Core:
    """What really changes, in lower case: words at both ends that stay, and articles, are left out.

    Phrases that the lexicon knows stay whole: "living room" -> "dining room".
    """

    original: str
    target: str
    start: int
    end: int


def check_pair(original: str, changed: str, *, start: int, end: int, target: str, others: Sequence[str]) -> str | None:
    """Why a pair is not usable, or None.

    Args:
        start: chars [start, end) of `original` are replaced by `target`.
        others: the other captions of the image.

    Reasons: `control_text`, `not_one_change` (`changed` is something else), `splits_word`, `no_change` (beyond case,
    space and punctuation), `nothing_replaced` (words are only added or dropped), `same_meaning` (a synonym, a broader
    or a narrower word), `mentioned` (in a caption of the image), `article` (a/an), `number` (one for many), `pronoun`
    (his/her), `repeated_word`.
    """
    if _CONTROL.search(target) or any(unicodedata.category(char) in ("Cc", "Cf", "Co", "Cn") for char in target):
        return "control_text"
    if not 0 <= start < end <= len(original) or changed != original[:start] + target + original[end:]:
        return "not_one_change" if not 0 <= start == end <= len(original) else "nothing_replaced"
    if _splits(original, start, end) or _splits(changed, start, start + len(target)):
        return "splits_word"
    if _letters(original[start:end]) == _letters(target):
        return "no_change"
    core = _core(original, start, end, target)
    if not core.original or not core.target:
        return "nothing_replaced"
    return _judge_meaning(original, core, others) or _judge_form(original, changed, core)


def classify(original_span: str, target: str, context: str) -> PairKind | None:
    """The kind of a change by the lexicon; None if it does not know the words. `context` is the original caption.

    Example: ("front", "back", "a cat in front of a door") is a relation, for it changes "in front of".
    """
    found = re.search(rf"(?<!\w){re.escape(original_span)}(?!\w)", context)
    if found is None:
        context, start = original_span, 0
    else:
        start = found.start()
    return _kind(_core(context, start, start + len(original_span), target), read_caption(context))


def _kind(core: _Core, caption: Caption) -> PairKind | None:
    one, other = core.original, core.target
    if _is_number(one) and _is_number(other):
        return "count"
    lexicon = load()
    if (phrase := _phrase_around(caption, core)) in lexicon.kinds and phrase != one:
        return lexicon.kinds[phrase]
    first, second = _entry(one), _entry(other)
    if (first.colour and second.colour) or (first.material and second.material):
        return "attribute"
    if one in lexicon.kinds and (other in lexicon.kinds or not second.nouns):
        return lexicon.kinds[one]
    if first.nouns and second.nouns:
        places = all(
            "place" in {lexicon.groups[sense.group].kind for sense in entry.nouns} for entry in (first, second)
        )
        return "place" if places else "object"
    return "attribute" if first.colour or first.material else None


def _judge_meaning(original: str, core: _Core, others: Sequence[str]) -> str | None:
    one, other = core.original, core.target
    if same_meaning(one, other) or _shortened(one, other):
        return "same_meaning"
    caption = read_caption(original)
    elsewhere = frozenset[str]().union(*(read_caption(text).words for text in others))
    kind = _kind(core, caption)
    index = next((i for i, end in enumerate(caption.ends) if end > core.start), 0)
    site = Site(kind or "object", index, (), nearby=kind in NEARBY and other in load().kinds)
    return None if allowed(caption, elsewhere, site, _option(one, other)) else "mentioned"


def _option(one: str, other: str) -> Option:
    """The replacement as the rules would describe it."""
    kinds = load().kinds
    if _is_number(one) and _is_number(other):
        return next((found for found in number_options(one) if found.text == other), option(other, one))
    if one in kinds and other in kinds and (options := swap_options(one, (other,))):
        return options[0]
    return option(other, one)


def _judge_form(original: str, changed: str, core: _Core) -> str | None:
    if article_faults(changed) > article_faults(original):
        return "article"
    one, other = _entry(core.original), _entry(core.target)
    numbers, new = ({sense.number for sense in entry.nouns} for entry in (one, other))
    if numbers and new and "mass" not in numbers | new and numbers.isdisjoint(new):
        return "number"
    if _clashes(read_caption(original), one, other):
        return "pronoun"
    return "repeated_word" if repeats(changed) > repeats(original) else None


def _clashes(caption: Caption, one: Entry, other: Entry) -> bool:
    """Whether a man becomes a woman, or the other way round, though the caption says "his" or "her"."""
    before, after = ({GENDERED.get(sense.cluster) for sense in entry.nouns} - {None} for entry in (one, other))
    words = load().words
    return bool(after) and any(
        gender not in after and not words[gender].isdisjoint(caption.words) for gender in before if gender
    )


def _core(original: str, start: int, end: int, target: str) -> _Core:
    old = [(match.group().lower(), match.start(), match.end()) for match in WORD.finditer(original, start, end)]
    new = [match.group().lower() for match in WORD.finditer(target)]
    if old and new and {old[0][0], new[0]} <= ARTICLES:
        old.pop(0)
        new.pop(0)
    known = load().phrases
    while not (" ".join(word for word, *_ in old) in known and " ".join(new) in known) and old and new:
        if old[-1][0] == new[-1]:
            old.pop()
            new.pop()
        elif old[0][0] == new[0]:
            old.pop(0)
            new.pop(0)
        else:
            break
    if not old:
        return _Core("", " ".join(new), start, start)
    return _Core(" ".join(word for word, *_ in old), " ".join(new), old[0][1], old[-1][2])


def _shortened(one: str, other: str) -> bool:
    """ "tennis racket" -> "racket": the same, more or less precisely."""
    longer, shorter = sorted((one, other), key=len, reverse=True)
    return f" {longer}".endswith(f" {shorter}")


def _phrase_around(caption: Caption, core: _Core) -> str:
    """The phrase of the lexicon that holds the changed words."""
    spans = zip(caption.items, caption.starts, caption.ends, strict=True)
    return next((item for item, start, end in spans if start <= core.start and core.end <= end), "")


def _entry(text: str) -> Entry:
    return load().phrases.get(text) or Entry()


def _is_number(text: str) -> bool:
    return text in NUMBERS or text.isdigit()


def _letters(text: str) -> str:
    return "".join(char for char in text.casefold() if char.isalnum())


def _splits(text: str, start: int, end: int) -> bool:
    """Whether a boundary lies within a word."""
    return any(0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum() for at in (start, end))
