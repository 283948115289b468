"""The language of scene captions: words, templates and a strict parser.

A caption is a sequence of clauses; each is a template whose slots are filled with words. Words in capitals are slots.
Templates of a kind differ in length (10 to 18 words), so which word stands where is open until the others are known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from core.worlds.scenes_graph import Identity, Relation, SceneObject

PROMPT = "describe the image"

MEANINGS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "SHAPE": {
        "circle": ("circle", "disc"),
        "square": ("square", "box"),
        "triangle": ("triangle", "wedge"),
        "cross": ("cross", "plus"),
        "diamond": ("diamond", "rhombus"),
        "ring": ("ring", "hoop"),
    },
    "COLOUR": {
        "red": ("red", "crimson"),
        "green": ("green", "emerald"),
        "blue": ("blue", "azure"),
        "yellow": ("yellow", "golden"),
        "purple": ("purple", "violet"),
        "white": ("white", "ivory"),
        "orange": ("orange", "amber"),
        "pink": ("pink", "rosy"),
    },
    "BACKGROUND": {
        "black": ("black", "dark"),
        "gray": ("gray", "silver"),
        "brown": ("brown", "tan"),
        "teal": ("teal", "cyan"),
    },
    "SIZE": {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")},
    "ROW": {"0": ("top", "upper"), "1": ("middle", "central"), "2": ("bottom", "lower")},
    "COLUMN": {"0": ("left",), "1": ("center",), "2": ("right",)},
    "COUNT": {"2": ("two",), "3": ("three",), "4": ("four",)},  # no scene has four: a mistake that can be made
    "SIDE": {"left": ("left",), "right": ("right",)},
    "HEIGHT": {"above": ("above", "over"), "below": ("below", "under", "beneath")},
    "MORE": {"bigger": ("bigger", "larger"), "smaller": ("smaller", "tinier")},
}
"""Slots that carry a fact: meaning -> the words that mean it."""

FREE: Mapping[str, tuple[str, ...]] = {
    "AREA": ("corner", "area", "region"),
    "LIE": ("sits", "lies", "rests"),
    "HOLD": ("contains", "holds", "features"),
    "SEEM": ("is", "looks", "seems"),
    "ADVERB": ("quite", "rather", "fairly"),
    "PAINTED": ("painted", "colored", "drawn"),
    "SCALE": ("size", "scale"),
    "NEAR": ("toward", "near", "around"),
    "IMAGE": ("image", "picture", "scene"),
    "SHOW": ("shows", "contains", "depicts"),
    "THINGS": ("objects", "shapes", "items"),
    "BACK": ("background", "backdrop", "canvas"),
    "WE": ("we", "you", "one"),
    "SEE": ("see", "find", "spot"),
    "THIS": ("the", "this"),
    "PLAIN": ("simple", "plain", "clean"),
    "FURTHER": ("further", "farther"),
    "PLACED": ("located", "placed", "positioned"),
}
"""Slots that carry no fact: words to choose from freely."""

SECOND = {"COLOUR2": "COLOUR", "SHAPE2": "SHAPE"}
"""Slots of a relation's second object -> the slot whose words they take."""
RELATION_SLOTS = ("SIDE", "HEIGHT", "MORE")

Kind = Literal["object", "overview", "relation"]


@dataclass(frozen=True, slots=True)
class Template:
    """One way to word a clause: a slot or a literal word for each position."""

    kind: Kind
    slots: tuple[str, ...]


def _templates(kind: Kind, *patterns: str) -> tuple[Template, ...]:
    return tuple(Template(kind, tuple(pattern.split())) for pattern in patterns)


OBJECT_TEMPLATES = _templates(
    "object",
    "a SIZE COLOUR SHAPE LIE in the ROW COLUMN AREA .",
    "in the ROW COLUMN AREA , there is a SIZE COLOUR SHAPE .",
    "the ROW COLUMN AREA HOLD a SIZE COLOUR SHAPE .",
    "WE can SEE a COLOUR SHAPE at the ROW COLUMN , and it SEEM ADVERB SIZE .",
    "there is a SHAPE in the ROW COLUMN AREA , PAINTED in COLOUR and SIZE in SCALE .",
    "NEAR the ROW COLUMN LIE a COLOUR SHAPE of SIZE SCALE .",
    "the COLOUR SHAPE PLACED at the ROW COLUMN SEEM SIZE .",
    "at the ROW COLUMN , WE can SEE a SIZE SHAPE PAINTED in COLOUR .",
)
OVERVIEW_TEMPLATES = _templates(
    "overview",
    "THIS IMAGE SHOW COUNT THINGS on a BACKGROUND BACK .",
    "COUNT THINGS can be seen against a BACKGROUND BACK .",
    "against a BACKGROUND BACK , WE can SEE COUNT THINGS .",
    "this is a PLAIN IMAGE with a BACKGROUND BACK and COUNT THINGS .",
    "there are COUNT THINGS in THIS IMAGE , and the BACK is BACKGROUND .",
    "the BACK of THIS IMAGE is BACKGROUND , with COUNT THINGS on it .",
)
RELATION_TEMPLATES = _templates(
    "relation",
    "the COLOUR SHAPE is to the SIDE of the COLOUR2 SHAPE2 .",
    "the COLOUR SHAPE LIE HEIGHT the COLOUR2 SHAPE2 .",
    "the COLOUR SHAPE SEEM MORE than the COLOUR2 SHAPE2 .",
    "compared with the COLOUR2 SHAPE2 , the COLOUR SHAPE is FURTHER SIDE .",
)
"""Each holds for a relation and its opposite, so that these four word eight."""
TEMPLATES = OBJECT_TEMPLATES + OVERVIEW_TEMPLATES + RELATION_TEMPLATES


def meanings(slot: str) -> Mapping[str, tuple[str, ...]] | None:
    """Meaning -> words of a slot that carries a fact; None for free slots and literal words."""
    return MEANINGS.get(SECOND.get(slot, slot))


@cache
def choices(slot: str, meaning: str | None = None) -> tuple[str, ...]:
    """The words that may fill a slot: those of `meaning`, or all of them if it is None."""
    table = meanings(slot)
    if table is None:
        return FREE.get(slot, (slot,))
    return table[meaning] if meaning is not None else tuple(word for words in table.values() for word in words)


MEANING_OF: Mapping[str, Mapping[str, str]] = {
    slot: {word: meaning for meaning, words in table.items() for word in words} for slot, table in MEANINGS.items()
}
"""slot -> word -> meaning."""

VOCABULARY: tuple[str, ...] = tuple(
    sorted({word for template in TEMPLATES for slot in template.slots for word in choices(slot)} | {*PROMPT.split()})
)
"""Every word of captions and prompt."""


@dataclass(frozen=True, slots=True)
class ObjectClause:
    """A clause that states one object. `start`: index of its first word in the text."""

    start: int
    template: Template
    object: SceneObject


@dataclass(frozen=True, slots=True)
class OverviewClause:
    """A clause that states how many objects there are, on which background."""

    start: int
    template: Template
    count: int
    background: str


@dataclass(frozen=True, slots=True)
class RelationClause:
    """A clause that states a relation of two objects."""

    start: int
    template: Template
    relation: Relation


@dataclass(frozen=True, slots=True)
class Invalid:
    """Words up to a full stop, or to the end of the text, that no template accepts."""

    start: int
    words: tuple[str, ...]


Clause = ObjectClause | OverviewClause | RelationClause
_ACCEPTS: Mapping[int, tuple[tuple[Template, tuple[frozenset[str], ...]], ...]] = {
    length: tuple((t, tuple(frozenset(choices(slot)) for slot in t.slots)) for t in TEMPLATES if len(t.slots) == length)
    for length in sorted({len(template.slots) for template in TEMPLATES})
}
"""Clause length -> templates of that length with the words that each position accepts."""


def read_clause(template: Template, words: tuple[str, ...], start: int) -> Clause:
    """The facts that `words` state in the wording of `template`, which must accept them."""
    facts = {
        slot: MEANING_OF[SECOND.get(slot, slot)][word]
        for slot, word in zip(template.slots, words, strict=True)
        if SECOND.get(slot, slot) in MEANING_OF
    }
    if template.kind == "object":
        row, column = int(facts["ROW"]), int(facts["COLUMN"])
        stated = SceneObject(colour=facts["COLOUR"], shape=facts["SHAPE"], size=facts["SIZE"], row=row, column=column)
        return ObjectClause(start, template, stated)
    if template.kind == "overview":
        return OverviewClause(start, template, int(facts["COUNT"]), facts["BACKGROUND"])
    name = next(facts[slot] for slot in RELATION_SLOTS if slot in facts)
    first: Identity = (facts["COLOUR"], facts["SHAPE"])
    return RelationClause(start, template, (name, first, (facts["COLOUR2"], facts["SHAPE2"])))


def parse(text: str) -> list[Clause | Invalid]:
    """Read a text clause by clause; a clause ends with the word ".". Nothing is repaired or guessed."""
    words = text.split()
    clauses: list[Clause | Invalid] = []
    start = 0
    while start < len(words):
        end = words.index(".", start) + 1 if "." in words[start:] else len(words)
        clauses.append(_clause(tuple(words[start:end]), start))
        start = end
    return clauses


def _clause(words: tuple[str, ...], start: int) -> Clause | Invalid:
    for template, accepts in _ACCEPTS.get(len(words), ()):
        if all(word in allowed for word, allowed in zip(words, accepts, strict=True)):
            return read_clause(template, words, start)
    return Invalid(start, words)


def object_meanings(thing: SceneObject) -> dict[str, str]:
    """Slot -> meaning of a clause that states `thing`."""
    return {
        "COLOUR": thing.colour,
        "SHAPE": thing.shape,
        "SIZE": thing.size,
        "ROW": str(thing.row),
        "COLUMN": str(thing.column),
    }


def relation_meanings(relation: Relation) -> dict[str, str]:
    """Slot -> meaning of a clause that states `relation`."""
    name, (colour, shape), (colour2, shape2) = relation
    slot = next(slot for slot in RELATION_SLOTS if name in MEANINGS[slot])
    return {"COLOUR": colour, "SHAPE": shape, "COLOUR2": colour2, "SHAPE2": shape2, slot: name}
