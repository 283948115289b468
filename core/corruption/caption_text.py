"""A caption as items: the longest phrases that the lexicon knows, other words, and punctuation.

"A hot dog on a plate." -> a | hot dog | on | a | plate | .
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from core.corruption.lexicon import Entry, Lexicon, load

_TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+(?:[.,:/]\d+)*|[^\w\s]|_")
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
ARTICLES = frozenset({"a", "an"})
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|(?<!\w)['‘][^'’]*['’](?!\w)")
_ENDS = frozenset(".!?\n")
_SILENT_H = ("hour", "honest", "honor", "honour", "heir")
_LIKE_YOU = ("uni", "use", "usual", "ute", "ufo", "ewe", "eu", "one", "once", "ukulele", "ural")


@dataclass(frozen=True, slots=True)
class Caption:
    """Parallel lists over its items; chars [starts[i], ends[i]). `words` is all that it mentions."""

    text: str
    items: list[str]
    entries: list[Entry | None]
    starts: list[int]
    ends: list[int]
    sentences: list[int]
    quoted: list[tuple[int, int]]
    words: frozenset[str]

    def before(self, index: int) -> str:
        """The item in front of one, "" at the start."""
        return self.items[index - 1] if index else ""

    def after(self, index: int) -> str:
        """The item behind one, "" at the end."""
        return self.items[index + 1] if index + 1 < len(self.items) else ""

    def free(self, index: int) -> bool:
        """Whether a word may be changed: it is in no quotation, no name and no hyphenated word."""
        start, end = self.starts[index], self.ends[index]
        piece = self.text[start:end]
        if self.text[end : end + 1] in ("-", "/", "_") or self.text[start - 1 : start] in ("-", "/", "_", "#", "$"):
            return False
        if not piece.islower() and not piece.isdigit() and (not piece[1:].islower() or not self.opens(index)):
            return False
        return not any(left <= start < right for left, right in self.quoted)

    def opens(self, index: int) -> bool:
        """Whether an item is the first of its sentence."""
        return index == 0 or self.sentences[index] != self.sentences[index - 1]

    def sentence(self, index: int) -> list[str]:
        """The items of the sentence that an item is in."""
        return [item for item, at in zip(self.items, self.sentences, strict=True) if at == self.sentences[index]]


def read_caption(text: str) -> Caption:
    """Split a caption into items."""
    lexicon = load()
    tokens: list[str] = []
    spans: list[tuple[int, int]] = []
    for match in _TOKEN.finditer(text):
        tokens.append(match.group().lower().replace("’", "'"))
        spans.append(match.span())
    items: list[str] = []
    entries: list[Entry | None] = []
    starts: list[int] = []
    ends: list[int] = []
    sentences: list[int] = []
    sentence = index = 0
    while index < len(tokens):
        item, length = _longest(lexicon, tokens, index)
        items.append(item)
        entries.append(lexicon.phrases.get(item))
        starts.append(spans[index][0])
        ends.append(spans[index + length - 1][1])
        sentences.append(sentence)
        sentence += item in _ENDS
        index += length
    quoted = [match.span() for match in _QUOTED.finditer(text)] if '"' in text or "“" in text or "'" in text else []
    return Caption(text, items, entries, starts, ends, sentences, quoted, mentioned(tokens, items))


def _longest(lexicon: Lexicon, tokens: list[str], index: int) -> tuple[str, int]:
    """The longest phrase of the lexicon that starts at a token, or the token."""
    token = tokens[index]
    for length in range(min(lexicon.starts.get(token, 1), len(tokens) - index), 1, -1):
        phrase = " ".join(tokens[index : index + length])
        if phrase in lexicon.phrases:
            return phrase, length
    return token, 1


def mentioned(tokens: list[str], items: Iterable[str]) -> frozenset[str]:
    """Words, pairs of words and phrases that stand in a text; "dog's" mentions a dog."""
    words = {*tokens, *items}
    words.update(f"{one} {two}" for one, two in pairwise(tokens))
    words.update(token.partition("'")[0] for token in tokens if "'" in token)
    return frozenset(words)


def article_faults(text: str) -> int:
    """How often "a" stands where "an" should, or the other way round; punctuation does not count."""
    pairs = pairwise(WORD.findall(text))
    return sum(one.lower() in ARTICLES and not two.isupper() and one.lower() != article_of(two) for one, two in pairs)


def repeats(text: str) -> int:
    """How often a word follows itself; punctuation does not count."""
    return sum(one == two for one, two in pairwise(WORD.findall(text.lower())))


def article_of(word: str) -> str:
    """ "a" or "an", as `word` sounds."""
    lower = word.lower()
    if lower[:1].isdigit():
        return "an" if lower.startswith(("8", "11", "18")) and lower[:3] not in ("110", "111") else "a"
    if lower.startswith(_SILENT_H):
        return "an"
    if lower.startswith(_LIKE_YOU) and not lower.startswith(("unin", "unim", "unid")):
        return "a"
    return "an" if lower[:1] in ("a", "e", "i", "o", "u") else "a"


@cache
def _classes() -> tuple[frozenset[str], frozenset[str], frozenset[str], frozenset[str]]:
    """Words that go with a noun from the left; those that end a noun phrase; adjectives; determiners."""
    words = load().words
    left = words["det"] | words["prep"] | words["conj"] | words["be"] | words["verb"] | {",", "", ".", ":", ";", "-"}
    right = words["prep"] | words["conj"] | words["be"] | words["verb"] | words["adv"] | words["neg"] | words["det"]
    return left, right | set(",.;:!?)") | {"", "\n", "to", "it", "he", "she", "they"}, words["adjective"], words["det"]


def is_adjective(item: str, entry: Entry | None) -> bool:
    """Whether a word may stand between an article and its noun."""
    if entry is not None and (entry.colour is not None or entry.material is not None):
        return True
    return item in _classes()[2]


def is_verb_form(item: str, entry: Entry | None) -> bool:
    """Whether a word looks like a participle: "holding", "covered"; not "building" or "red"."""
    return len(item) > 4 and item.endswith(("ing", "ed")) and not (entry is not None and entry.nouns)


def ends_noun(caption: Caption, index: int) -> bool:
    """Whether the noun at an item is the last word of its noun phrase."""
    follower = caption.after(index)
    if follower in _classes()[1]:
        return True
    return is_verb_form(follower, caption.entries[index + 1]) and caption.after(index + 1) not in ("", ".")


def starts_noun(caption: Caption, index: int) -> int | None:
    """The item where the noun phrase of the noun at `index` starts (its article, if any); None if that is not plain."""
    left, _, _, determiners = _classes()
    first = index
    while first > 0 and is_adjective(caption.items[first - 1], caption.entries[first - 1]):
        first -= 1
    item = caption.items[first - 1] if first else ""
    if item in determiners:
        return first - 1
    if first == 0 or caption.opens(first) or item in left or is_verb_form(item, caption.entries[first - 1]):
        return first
    entry = caption.entries[first - 1]
    return first if entry is not None and entry.swaps and entry.swaps[0].kind == "relation" else None


def number_at(caption: Caption, index: int, first: int, numbers: Collection[str]) -> str | None:
    """Which of the numbers that a noun's form can have it has here; None if that is not plain."""
    words = load().words
    if caption.items[first] in words["plural"] and "many" not in numbers:
        return None
    if len(numbers) == 1:
        only = next(iter(numbers))
        return None if only == "mass" and caption.items[first] in words["singular"] else only
    item = caption.items[first]
    if item in words["singular"]:
        return "one" if "one" in numbers else None
    quantity = item if item in words["plural"] else caption.items[first - 2] if caption.before(first) == "of" else ""
    if quantity in words["plural"]:
        return "many" if "many" in numbers else None
    bare = item not in words["det"]
    return "mass" if bare and "mass" in numbers else None


def head_after(caption: Caption, index: int, *, whole: bool = False) -> int | None:
    """The noun that ends the noun phrase behind item `index`, within the next six items; None if there is none.

    `whole`: the phrase starts there, with an article or so; else the item is a part of it.
    """
    _, _, adjectives, determiners = _classes()
    items, entries = caption.items, caption.entries
    for at in range(index + 1, min(index + 7, len(items))):
        entry, item = entries[at], items[at]
        if entry is not None and entry.nouns and not (entry.colour and not _final(caption, at)):
            # "a kitchen table", but not "a cat stands"
            while not ends_noun(caption, at) and (following := entries[at + 1]) is not None and following.nouns:
                at += 1
            return at if ends_noun(caption, at) else None
        plain = item in adjectives or (whole and at == index + 1 and item in determiners) or item in ("and", ",")
        if not plain and not (entry is not None and (entry.colour or entry.material)):
            return None
    return None


def _final(caption: Caption, index: int) -> bool:
    return ends_noun(caption, index) and caption.before(index) in ("a", "an", "the", "one")
