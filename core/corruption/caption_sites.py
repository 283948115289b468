"""Places in a caption where one fact can be made wrong, and what may stand there instead.

A rule is strict rather than complete: where the words around a fact leave doubt, it is left alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from core.corruption.caption_text import Caption, ends_noun, head_after, number_at, starts_noun
from core.corruption.hallucination import PairKind
from core.corruption.lexicon import (
    NUMBERS,
    Cluster,
    Entry,
    Group,
    NounSense,
    Swap,
    broader_than,
    load,
    names_of,
    same_meaning,
)

GENDERED = {"man": "his", "boy": "his", "woman": "her", "girl": "her"}
"""Words that would not go with another name of these people: a row of words.tsv."""
NEARBY: frozenset[PairKind] = frozenset({"place", "relation"})
"""Kinds of words of which a long caption may well use both, of different things."""
_BE = frozenset({"is", "are", "was", "were"})
_WHERE = frozenset({"in", "on", "at", "near", "inside", "outside", "through", "across"})
_MUTED = frozenset({"light", "dark", "bright", "pale", "deep"})


@dataclass(frozen=True, slots=True)
class Option:
    """A replacement. It is ruled out by a mention of `names`, or of `broader` unless the original is that as well."""

    text: str
    names: frozenset[str]
    broader: frozenset[str]


@dataclass(frozen=True, slots=True)
class Site:
    """Item `index` of a caption states a fact of `kind`. `nearby`: only its own sentence must not mention the
    new word, and no other sentence may say that of the same things."""

    kind: PairKind
    index: int
    options: tuple[Option, ...]
    nearby: bool = False


def find_sites(caption: Caption, image_words: frozenset[str]) -> Iterator[Site]:
    """All sites. `image_words` is what this and the other captions of the image mention."""
    for index, entry in enumerate(caption.entries):
        if entry is None:
            item = caption.items[index]
            if (item in NUMBERS or (item.isdigit() and 2 <= int(item) <= 20)) and caption.free(index):
                yield from _count(caption, index)
        elif not entry.compound and caption.free(index):
            if entry.colour is not None or entry.material is not None:
                yield from _adjective(caption, index, entry)
            if entry.nouns:
                yield from _noun(caption, index, entry, image_words)
            for swap in entry.swaps:
                yield from _swap(caption, index, swap)


def _noun(caption: Caption, index: int, entry: Entry, image_words: frozenset[str]) -> Iterator[Site]:
    first = starts_noun(caption, index)
    if first is None or not ends_noun(caption, index) or (entry.colour and caption.before(index) in _MUTED):
        return
    words = load().words
    if caption.items[index] in words["homograph"] and (first == index or caption.after(index) in words["modal"]):
        return
    number = number_at(caption, index, first, {sense.number for sense in entry.nouns})
    senses = [sense for sense in entry.nouns if sense.number == number]
    if len({sense.cluster for sense in senses}) != 1:
        return
    if number == "one" and not _may_be_bare(caption, index, first, load().groups[senses[0].group]):
        return
    cluster = load().clusters[senses[0].cluster]
    if not cluster.avoid.isdisjoint(image_words) or _said_twice(caption, cluster):
        return
    if cluster.name in GENDERED and not words[GENDERED[cluster.name]].isdisjoint(caption.words):
        return
    kind, groups = _role(caption, first, [load().groups[sense.group] for sense in senses])
    if kind is None or any(caption.before(first) in group.not_before for group in groups):
        return
    if caption.after(index) == "of" and groups[0].sort != "container":
        return
    names = {group.name for group in groups}
    if options := noun_options(caption.items[index], tuple(sense for sense in senses if sense.group in names)):
        yield Site(kind, index, options)


def _role(caption: Caption, first: int, groups: Sequence[Group]) -> tuple[PairKind | None, list[Group]]:
    """Whether a noun is spoken of as a thing or as a place, and its groups of that kind."""
    places = [group for group in groups if group.kind == "place"]
    objects = [group for group in groups if group.kind == "object"]
    before = caption.before(first)
    seen = before in ("by", "") or (before == "of" and caption.before(first - 1) in load().words["view"])
    if places and (before in _WHERE or (seen and not objects)):
        return "place", places
    return ("object", objects) if objects else (None, [])


def _may_be_bare(caption: Caption, index: int, first: int, group: Group) -> bool:
    """Whether one thing has its article, or is named as in a headline: "Man riding horse" (not "eating cake")."""
    words = load().words
    if caption.items[first] in words["det"]:
        return True
    if group.sort == "food":
        return False
    if caption.opens(first):
        return True
    before = caption.before(first)
    return caption.sentences[-1] == 0 and (before in words["prep"] or before.endswith("ing")) and first == index


def _said_twice(caption: Caption, cluster: Cluster) -> bool:
    forms = cluster.forms
    return sum(item in forms or item.rpartition(" ")[2] in forms for item in caption.items) > 1 or any(
        f"{form}'s" in caption.words for form in forms
    )


@lru_cache(maxsize=8192)
def noun_options(form: str, senses: tuple[NounSense, ...]) -> tuple[Option, ...]:
    """What may stand for a noun: the names, in its number, of the other clusters of its groups."""
    lexicon = load()
    texts = {
        text
        for sense in senses
        for name in lexicon.members[sense.group]
        if name != sense.cluster and (cluster := lexicon.clusters[name]).target
        if (text := getattr(cluster, sense.number)) is not None
    }
    own = names_of(form) | names_of(senses[0].cluster)
    return tuple(option(text, form) for text in sorted(texts) if text not in own and not same_meaning(form, text))


@cache
def option(text: str, original: str) -> Option:
    """`text` as a replacement of `original`."""
    return Option(text, names_of(text), broader_than(text) - broader_than(original) - names_of(original))


def _adjective(caption: Caption, index: int, entry: Entry) -> Iterator[Site]:
    head = head_after(caption, index)
    if head is None or caption.before(index) in ("in", "of") or _repeated(caption, index, head):
        return
    lexicon, noun = load(), caption.entries[head]
    if noun is None:
        return
    group = lexicon.groups[noun.nouns[0].group]
    near = (caption.entries[index - 1] if index else None, caption.entries[index + 1])
    if any(other is not None and other.colour is not None for other in near):  # "yellowish tan" is one colour
        return
    if entry.material is not None and near[1] is not None and near[1].material is not None:  # "stone brick"
        return
    if entry.colour is not None and group.palette != "-":
        allowed = lexicon.palettes[group.palette]
        if caption.before(index) in _MUTED:
            allowed = allowed - {"black", "white"}
        if entry.colour == "yellow" and group.palette == "hair":
            return
        if options := _colour_options(caption.items[index], entry.colour, allowed):
            yield Site("attribute", index, options)
    elif entry.material is not None and (
        options := _colour_options(caption.items[index], entry.material, group.materials)
    ):
        yield Site("attribute", index, options)


def _repeated(caption: Caption, index: int, head: int) -> bool:
    """Whether the caption comes back both to the word and to the thing that it describes."""
    items = caption.items
    return items.count(items[index]) > 1 and items.count(items[head]) > 1


@lru_cache(maxsize=4096)
def _colour_options(form: str, cluster: str, allowed: frozenset[str]) -> tuple[Option, ...]:
    lexicon = load()
    return tuple(option(lexicon.colours[name][0], form) for name in lexicon.far[cluster] if name in allowed)


def _count(caption: Caption, index: int) -> Iterator[Site]:
    head, item = head_after(caption, index), caption.items[index]
    if (
        item == "one"
        or head is None
        or item in caption.items[index + 1 :]
        or not load().words["reckoned"].isdisjoint(caption.words)
    ):
        return
    noun = caption.entries[head]
    if (
        noun is None
        or not any(sense.number == "many" for sense in noun.nouns)
        or caption.before(index) in ("of", "the")
    ):
        return
    bad = load().words["bodyunits"]
    if not bad.isdisjoint(caption.items[index + 1 : head + 1]) or caption.before(index) in ("at", "number", "age"):
        return
    if "," in caption.items[index:head] or "and" in caption.items[index:head]:
        return
    yield Site("count", index, number_options(item))


@cache
def number_options(item: str) -> tuple[Option, ...]:
    """Numbers near by, in words or digits as the original is."""
    number = int(item) if item.isdigit() else NUMBERS.index(item) + 1
    near = [n for n in range(max(2, number - 2), min(number + 3, len(NUMBERS)) + 1) if n != number]
    texts = [str(n) if item.isdigit() else NUMBERS[n - 1] for n in near]
    return tuple(
        Option(text, frozenset({str(n), NUMBERS[n - 1]}), frozenset()) for n, text in zip(near, texts, strict=True)
    )


def _swap(caption: Caption, index: int, swap: Swap) -> Iterator[Site]:
    if caption.before(index) in swap.not_before or caption.after(index) in swap.not_after:
        return
    if swap.before and not _holds(caption, index - 1, swap.before):
        return
    if swap.after and not _holds(caption, index + 1, swap.after):
        return
    if swap.avoid and not swap.avoid.isdisjoint(caption.sentence(index)):
        return
    # an adjective needs its noun; elsewhere conditions alone ask for one
    if swap.head or swap.not_head or (swap.kind == "attribute" and not swap.after):
        head = head_after(caption, index, whole=swap.kind != "attribute")
        if head is None or not _head_holds(caption, head, swap):
            return
        if swap.kind == "attribute" and _repeated(caption, index, head):
            return
    if options := swap_options(caption.items[index], swap.targets):
        yield Site(swap.kind, index, options, nearby=swap.kind in NEARBY)


@cache
def swap_options(item: str, targets: tuple[str, ...]) -> tuple[Option, ...]:
    """What may stand for a word of swaps.tsv: it is mentioned by the words of its sense."""
    senses = load().senses
    return tuple(
        Option(text, (senses.get(text, frozenset()) | {text}) - senses.get(item, frozenset()), frozenset())
        for text in targets
        if not same_meaning(item, text)
    )


def _head_holds(caption: Caption, head: int, swap: Swap) -> bool:
    names = {caption.items[head]}
    entry = caption.entries[head]
    for sense in entry.nouns if entry is not None else ():
        group = load().groups[sense.group]
        names |= {sense.cluster, group.name, f"@{group.sort}"}
    return names.isdisjoint(swap.not_head) and (not swap.head or not names.isdisjoint(swap.head))


def _holds(caption: Caption, at: int, conditions: frozenset[str]) -> bool:
    """Whether the item at `at` is one of the words or classes."""
    item = caption.items[at] if 0 <= at < len(caption.items) else ""
    if item in conditions:
        return True
    if "end" in conditions and (at >= len(caption.items) or ends_noun(caption, at - 1)):
        return True
    if "det" in conditions and item in load().words["det"]:
        return True
    if "be" in conditions and item in _BE:
        return at > 0 and _holds(caption, at - 1, frozenset({"animate"}))
    entry = caption.entries[at] if 0 <= at < len(caption.items) else None
    if entry is None or not entry.nouns:
        return False
    return "noun" in conditions or not _sorts(entry.nouns).isdisjoint(conditions)


def _sorts(senses: Sequence[NounSense]) -> set[str]:
    lexicon = load()
    sorts = {lexicon.groups[sense.group].sort for sense in senses} | {sense.cluster for sense in senses}
    return sorts | ({"animate"} if sorts & {"person", "animal"} else set())
