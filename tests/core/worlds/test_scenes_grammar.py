from collections import Counter
from itertools import combinations, product

import pytest

from core.worlds.scenes_grammar import (
    FREE,
    MEANINGS,
    OBJECT_TEMPLATES,
    OVERVIEW_TEMPLATES,
    PROMPT,
    RELATION_SLOTS,
    RELATION_TEMPLATES,
    SECOND,
    TEMPLATES,
    VOCABULARY,
    Invalid,
    ObjectClause,
    OverviewClause,
    RelationClause,
    choices,
    object_meanings,
    parse,
    relation_meanings,
)
from core.worlds.scenes_graph import BACKGROUNDS, COLOURS, GRID, INVERSE, SHAPES, SIZES, SceneObject


def fill(template, meanings, pick=0):
    return " ".join((options := choices(slot, meanings.get(slot)))[pick % len(options)] for slot in template.slots)


def test_no_words_fit_two_templates():
    for one, other in combinations(TEMPLATES, 2):
        if len(one.slots) == len(other.slots):
            assert any(not set(choices(a)) & set(choices(b)) for a, b in zip(one.slots, other.slots, strict=True)), (
                one,
                other,
            )


def test_a_word_has_one_meaning_in_its_slot():
    for table in MEANINGS.values():
        assert max(Counter(word for words in table.values() for word in words).values()) == 1


def test_only_the_last_word_of_a_clause_is_a_full_stop():
    for template in TEMPLATES:
        assert ["." in choices(slot) for slot in template.slots] == [False] * (len(template.slots) - 1) + [True]


def test_a_template_states_each_of_its_facts_once():
    stated = {
        "object": {"COLOUR", "SHAPE", "SIZE", "ROW", "COLUMN"},
        "overview": {"COUNT", "BACKGROUND"},
        "relation": {"COLOUR", "SHAPE", "COLOUR2", "SHAPE2"},
    }
    for template in TEMPLATES:
        slots = [slot for slot in template.slots if SECOND.get(slot, slot) in MEANINGS]
        assert len(slots) == len(set(slots))
        assert set(slots) - {*RELATION_SLOTS} == stated[template.kind]
        assert len({*RELATION_SLOTS} & set(slots)) == (template.kind == "relation")


def test_words_of_scene_and_language_agree():
    assert tuple(MEANINGS["COLOUR"]) == COLOURS
    assert tuple(MEANINGS["SHAPE"]) == SHAPES
    assert tuple(MEANINGS["SIZE"]) == SIZES
    assert tuple(MEANINGS["BACKGROUND"]) == BACKGROUNDS
    assert {meaning for slot in RELATION_SLOTS for meaning in MEANINGS[slot]} == set(INVERSE)


def test_every_slot_is_used_and_every_capital_word_is_a_slot():
    used = {slot for template in TEMPLATES for slot in template.slots}
    assert {SECOND.get(slot, slot) for slot in used if slot.isupper()} == set(MEANINGS) | set(FREE)
    assert set(PROMPT.split()) <= set(VOCABULARY)
    assert all(word == word.lower() and " " not in word for word in VOCABULARY)


@pytest.mark.parametrize("template", OBJECT_TEMPLATES)
def test_every_object_reads_as_itself(template):
    for colour, shape, size, cell in product(COLOURS, SHAPES, SIZES, range(9)):
        thing = SceneObject(colour=colour, shape=shape, size=size, row=cell // GRID, column=cell % GRID)
        (clause,) = parse(fill(template, object_meanings(thing), pick=cell))
        assert isinstance(clause, ObjectClause)
        assert (clause.object, clause.template) == (thing, template)


@pytest.mark.parametrize("template", OVERVIEW_TEMPLATES)
def test_every_overview_reads_as_itself(template):
    for count, background, pick in product("234", BACKGROUNDS, range(3)):
        (clause,) = parse(fill(template, {"COUNT": count, "BACKGROUND": background}, pick))
        assert isinstance(clause, OverviewClause)
        assert (clause.count, clause.background, clause.template) == (int(count), background, template)


@pytest.mark.parametrize("template", RELATION_TEMPLATES)
def test_every_relation_reads_as_itself(template):
    identities = list(product(COLOURS, SHAPES))[::5]
    names = [
        name for name in INVERSE if not set(relation_meanings((name, identities[0], identities[0]))) - {*template.slots}
    ]
    assert len(names) == 2
    for name, first, second in product(names, identities, identities):
        relation = name, first, second
        (clause,) = parse(fill(template, relation_meanings(relation), pick=len(first[0])))
        assert isinstance(clause, RelationClause)
        assert (clause.relation, clause.template) == (relation, template)


def test_one_wrong_word_makes_a_clause_invalid_and_leaves_its_neighbours():
    text = "two items can be seen against a dark canvas . two items can be be against a dark canvas . the red"
    assert [type(clause) for clause in parse(text)] == [OverviewClause, Invalid, Invalid]
    assert [clause.start for clause in parse(text)] == [0, 10, 20]
    assert parse("") == []
