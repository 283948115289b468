"""Curated words of captions: what they are, what may plausibly stand in their place, and what means the same.

The tables beside this file are data (see SOURCE.md); `load()` reads them once.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from core.corruption.hallucination import PairKind
from core.corruption.lexicon.tables import read_table, regular_plural

Number = Literal["one", "many", "mass"]
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
LONGEST = 4
"""No phrase has more words."""


@dataclass(frozen=True, slots=True)
class NounSense:
    """One reading of a noun's form: "mice" -> cluster "mouse", group "fixed_animal", number "many"."""

    group: str
    cluster: str
    number: Number


@dataclass(frozen=True, slots=True)
class Group:
    """A row of groups.tsv. `palette` and `materials`: how such nouns may be coloured and what made of."""

    name: str
    kind: PairKind | None
    sort: str
    palette: str
    materials: frozenset[str]
    not_before: frozenset[str]


@dataclass(frozen=True, slots=True)
class Swap:
    """One row of swaps.tsv for one phrase. Conditions are words or classes; empty ones hold always."""

    kind: PairKind
    targets: tuple[str, ...]
    before: frozenset[str]
    not_before: frozenset[str]
    after: frozenset[str]
    not_after: frozenset[str]
    head: frozenset[str]
    not_head: frozenset[str]
    avoid: frozenset[str]


@dataclass(slots=True)
class Entry:
    """All that the tables say of one phrase."""

    nouns: list[NounSense] = field(default_factory=list)
    colour: str | None = None
    material: str | None = None
    swaps: list[Swap] = field(default_factory=list)
    compound: bool = False
    known: bool = True


@dataclass(slots=True)
class Cluster:
    """Nouns that may name the same thing. `name` is what stands for it as a target, None if nothing should."""

    name: str
    one: str | None = None
    many: str | None = None
    mass: str | None = None
    target: bool = False
    forms: set[str] = field(default_factory=set)
    groups: list[str] = field(default_factory=list)
    avoid: set[str] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """The tables, ready for look-ups. `phrases` are lower-case; `starts` are first words of longer phrases."""

    phrases: dict[str, Entry]
    starts: dict[str, int]
    groups: dict[str, Group]
    clusters: dict[str, Cluster]
    members: dict[str, list[str]]
    colours: dict[str, tuple[str, ...]]
    far: dict[str, tuple[str, ...]]
    palettes: dict[str, frozenset[str]]
    senses: dict[str, frozenset[str]]
    kinds: dict[str, PairKind]
    words: dict[str, frozenset[str]]
    relations: dict[str, tuple[frozenset[str], frozenset[str], frozenset[str]]]


@cache
def load() -> Lexicon:
    """The lexicon, read once."""
    phrases: dict[str, Entry] = defaultdict(Entry)
    groups = {row[0]: _group(row) for row in read_table("groups")}
    clusters = _clusters(phrases)
    members: dict[str, list[str]] = defaultdict(list)
    for cluster in clusters.values():
        for group in cluster.groups:
            members[group].append(cluster.name)
    colours, far = _adjectives(phrases)
    senses: dict[str, frozenset[str]] = {}
    for _, row in read_table("senses"):
        forms = frozenset(row.split("|"))
        for form in forms:
            senses[form] = senses.get(form, frozenset()) | forms
            phrases[form].known = True
    kinds = _swaps(phrases)
    for (text,) in read_table("compounds"):
        if not phrases[text].nouns:
            phrases[text].compound = True
    starts: dict[str, int] = {}
    for phrase in phrases:
        words = phrase.split(" ")
        starts[words[0]] = max(starts.get(words[0], 1), len(words))
    return Lexicon(
        phrases=dict(phrases),
        starts={word: length for word, length in starts.items() if length > 1},
        groups=groups,
        clusters=clusters,
        members=dict(members),
        colours=colours,
        far=far,
        palettes={name: frozenset(row.split()) for name, row in read_table("palettes")},
        senses=senses,
        kinds=kinds,
        words={name: frozenset(row.split()) for name, row in read_table("words")},
        relations={row[0]: _related(row) for row in read_table("relations")},
    )


def _group(row: list[str]) -> Group:
    name, kind, sort, palette, materials, not_before = (*row, "")[:6]
    kinds: dict[str, PairKind] = {"object": "object", "place": "place"}
    return Group(name, kinds.get(kind), sort, palette, _words(materials), _words(not_before))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split()) - {"-"}


def _clusters(phrases: dict[str, Entry]) -> dict[str, Cluster]:
    clusters: dict[str, Cluster] = {}
    for group, text, *rest in read_table("nouns"):
        target, forms = not text.startswith("*"), text.lstrip("*").split("|")
        # nouns that no other may replace are listed together for brevity: each is its own cluster
        for part in [[form] for form in forms] if group.startswith("fixed") else [forms]:
            name = next(form for form in part[0].split("/") if form != "-")
            cluster = clusters.setdefault(name, Cluster(name))
            cluster.groups.append(group)
            cluster.target |= target and not group.startswith("fixed")
            cluster.avoid |= set(" ".join(rest).split())
            for position, form in enumerate(part):
                _add_noun(phrases, cluster, group, form, first=position == 0)
    return clusters


def _add_noun(phrases: dict[str, Entry], cluster: Cluster, group: str, form: str, *, first: bool) -> None:
    one, _, many = form.partition("/")
    forms: list[tuple[str, Number]] = []
    if many == "-":
        forms.append((one, "mass"))
    else:
        forms += [(one, "one")] if one != "-" else []
        forms.append((many or regular_plural(one), "many"))
    for text, number in forms:
        cluster.forms.add(text)
        sense = NounSense(group, cluster.name, number)
        if sense not in phrases[text].nouns:
            phrases[text].nouns.append(sense)
        if first:
            setattr(cluster, number, getattr(cluster, number) or text)


def _adjectives(phrases: dict[str, Entry]) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Colours and materials: the forms of each cluster, and what is far enough from it."""
    forms_of: dict[str, tuple[str, ...]] = {}
    far: dict[str, tuple[str, ...]] = {}
    for table in ("colours", "materials"):
        for name, forms, others in read_table(table):
            forms_of[name] = tuple(forms.lstrip("*").split("|"))
            far[name] = tuple(others.split())
            for form in forms_of[name]:
                entry = phrases[form]
                if table == "colours":
                    entry.colour = entry.colour or name
                else:
                    entry.material = entry.material or name
    return forms_of, far


def _swaps(phrases: dict[str, Entry]) -> dict[str, PairKind]:
    kinds: dict[str, PairKind] = {}
    known: dict[str, PairKind] = {"attribute": "attribute", "place": "place", "relation": "relation"}
    for row in read_table("swaps"):
        kind, sources, targets, before, after, head, avoid = (*row, "", "", "", "")[:7]
        swap = Swap(
            known[kind],
            tuple(targets.split("|")),
            *_condition(before),
            *_condition(after),
            *_condition(head),
            _words(avoid),
        )
        for phrase in sources.split("|"):
            phrases[phrase].swaps.append(swap)
        for phrase in [*sources.split("|"), *swap.targets]:
            kinds.setdefault(phrase, known[kind])
    return kinds


def _condition(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """ "on in !up" -> {"on", "in"} and {"up"}."""
    parts = [part.replace("-", " ") for part in text.replace("|", " ").split()]
    return (
        frozenset(part for part in parts if not part.startswith("!")),
        frozenset(part[1:] for part in parts if part.startswith("!")),
    )


def _related(row: list[str]) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    same, up, down = (frozenset(text.split("|")) - {""} for text in (*row[1:], "", "", "")[:3])
    return same, up, down


def with_plurals(words: Iterable[str]) -> frozenset[str]:
    """The words and their regular plurals."""
    return frozenset(form for word in words for form in (word, regular_plural(word)))


@cache
def names_of(text: str) -> frozenset[str]:
    """What mentions the same as `text`, or a kind of it: its cluster or sense, WordNet's synonyms and hyponyms."""
    lexicon = load()
    names = {text} | lexicon.senses.get(text, frozenset())
    entry = lexicon.phrases.get(text, Entry())
    for sense in entry.nouns:
        names |= lexicon.clusters[sense.cluster].forms
    for adjective in (entry.colour, entry.material):
        names |= set(lexicon.colours[adjective]) if adjective else set()
    for word in {text, *(sense.cluster for sense in entry.nouns)}:
        same, _, down = lexicon.relations.get(word, (frozenset[str](),) * 3)
        names |= with_plurals(same | down)
    return frozenset(names)


@cache
def broader_than(text: str) -> frozenset[str]:
    """WordNet's hypernyms of `text`, with plurals."""
    lexicon = load()
    words = {text, *(sense.cluster for sense in lexicon.phrases.get(text, Entry()).nouns)}
    return with_plurals({up for word in words if word in lexicon.relations for up in lexicon.relations[word][1]})


@cache
def _kin() -> tuple[dict[str, frozenset[int]], dict[str, frozenset[int]]]:
    """Rows of kin.tsv that a word stands in: as a name or a broader word, and as a narrower one."""
    broad: dict[str, set[int]] = defaultdict(set)
    narrow: dict[str, set[int]] = defaultdict(set)
    for number, (names, *narrower) in enumerate(read_table("kin")):
        for name in names.split("|"):
            broad[name].add(number)
        for name in narrower[0].split("|") if narrower and narrower[0] else ():
            narrow[name].add(number)
    return {name: frozenset(rows) for name, rows in broad.items()}, {
        name: frozenset(rows) for name, rows in narrow.items()
    }


@cache
def same_meaning(one: str, other: str) -> bool:
    """Whether one word means the other, or is a kind of it: "sofa" and "couch", "poodle" and "dog"."""
    if one == other or other in names_of(one) or one in names_of(other):
        return True
    return other in broader_than(one) or one in broader_than(other) or _akin(one, other)


def _akin(one: str, other: str) -> bool:
    """Whether kin.tsv says that the words name one thing, or that one is broader: "bus" and "vehicle"."""
    broad, narrow = _kin()
    nothing: frozenset[int] = frozenset()
    here, there = broad.get(one, nothing), broad.get(other, nothing)
    below, beneath = narrow.get(one, nothing), narrow.get(other, nothing)
    return bool(here & there or here & beneath or below & there)
