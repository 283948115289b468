from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.expert.rules import revise_by_rule
from core.expert.scene_rules import nearest_caption
from core.metrics.facts import measure
from core.worlds.scenes import PROMPT, VOCABULARY, scene_of, synthesize
from core.worlds.scenes_grammar import (
    OBJECT_TEMPLATES,
    OVERVIEW_TEMPLATES,
    RELATION_TEMPLATES,
    RelationClause,
    choices,
    object_meanings,
    parse,
    relation_meanings,
)
from core.worlds.scenes_graph import relations

REFERENCES = synthesize(split="train", start=0, count=40, captions=1, seed=0)[0]["reference"].to_list()
references = st.sampled_from(REFERENCES)


def revise(reference, draft):
    return revise_by_rule(PROMPT, reference, draft)


def applied(draft, segments):
    """All segments applied to the draft, white space aside; each must occur once, none may overlap."""
    located = sorted((draft.index(segment.org), segment) for segment in segments)
    text, position = "", 0
    for start, segment in located:
        assert start >= position
        assert sum(draft.startswith(segment.org, i) for i in range(len(draft))) == 1
        assert segment.org != segment.target
        text += draft[position:start] + segment.target
        position = start + len(segment.org)
    return " ".join((text + draft[position:]).split())


@st.composite
def drafts(drawn, min_words=1):
    """A caption with words changed, lost, doubled or taken from another caption."""
    words = drawn(references).split()
    other = drawn(references).split()
    for _ in range(drawn(st.integers(0, 12))):
        at = drawn(st.integers(0, len(words) - 1))
        match drawn(st.sampled_from(["change", "lose", "double", "take"])):
            case "change":
                words[at] = drawn(st.sampled_from(VOCABULARY))
            case "lose" if len(words) > min_words:
                del words[at]
            case "double":
                words[at : at + 1] = [words[at]] * 2
            case _:
                words[at : at + 5] = other[at : at + 5] or ["red"]
    return " ".join(words[:48])


@given(references, drafts())
@settings(max_examples=250, deadline=None)
def test_applying_every_segment_gives_a_true_and_complete_caption(reference, draft):
    segments = revise(reference, draft)
    revised = applied(draft, segments)
    assert scene_of(revised) == scene_of(reference)
    assert measure(reference, revised)["score"] == 100.0
    assert (segments == []) == (scene_of(draft) == scene_of(reference))
    assert len(revised.split()) <= max(len(draft.split()), len(reference.split()))


@given(references, drafts(min_words=40))
@settings(max_examples=100, deadline=None)
def test_drafts_that_have_room_keep_their_number_of_words(reference, draft):
    if 40 <= len(draft.split()) <= 48:
        for segment in revise(reference, draft):
            assert len(segment.org.split()) == len(segment.target.split())


@given(references, st.lists(st.sampled_from([*VOCABULARY, "unheard-of"]), min_size=1, max_size=70))
@settings(max_examples=100, deadline=None)
def test_any_words_can_be_revised(reference, words):
    draft = " ".join(words)
    assert scene_of(applied(draft, revise(reference, draft))) == scene_of(reference)


def fewest_edits(scene, draft):
    """The fewest words that differ between the draft and a true caption of as many words: plain recursion."""
    facts = {"COUNT": str(len(scene.objects)), "BACKGROUND": scene.background}
    said = [[(template, object_meanings(thing)) for template in OBJECT_TEMPLATES] for thing in scene.objects]
    said.append([(template, facts) for template in OVERVIEW_TEMPLATES])
    said.append(
        [
            (template, stated)
            for relation in relations(scene)
            for template in RELATION_TEMPLATES
            if set(stated := relation_meanings(relation)) <= set(template.slots)
        ]
    )
    wordings = [[[set(choices(s, stated.get(s))) for s in t.slots] for t, stated in wording] for wording in said]

    @cache
    def rest(position, left):
        if position == len(draft) and left <= {len(wordings) - 1}:
            return 0
        best = float("inf")
        for group in left:
            for pattern in wordings[group]:
                words = draft[position : position + len(pattern)]
                if len(words) == len(pattern):
                    edits = sum(word not in allowed for word, allowed in zip(words, pattern, strict=True))
                    best = min(best, edits + rest(position + len(pattern), left - {group}))
        return best

    return rest(0, frozenset(range(len(wordings))))


@given(references, drafts(min_words=40))
@settings(max_examples=30, deadline=None)
def test_no_caption_of_equal_length_is_nearer(reference, draft):
    scene, words = scene_of(reference), tuple(draft.split())
    nearest = nearest_caption(scene, words, 48)
    if len(nearest) == len(words):
        assert sum(a != b for a, b in zip(words, nearest, strict=True)) == fewest_edits(scene, words)
    else:
        assert fewest_edits(scene, words) == float("inf")


@pytest.mark.parametrize("reference", REFERENCES[:20])
def test_a_caption_of_the_same_scene_in_other_words_is_right(reference):
    clauses = [f"{clause.strip()} ." for clause in reference.split(".")[:-1]]
    assert revise(reference, reference) == []
    assert revise(reference, " ".join(reversed(clauses))) == []


@pytest.mark.parametrize("reference", REFERENCES[:20])
def test_one_wrong_word_is_one_short_segment(reference):
    (segment,) = revise(reference, f"{reference[:-1]}pink")
    assert segment.target.endswith(".")
    assert len(segment.org.split()) <= 3


def test_a_relation_is_said_only_where_it_is_cheaper():
    stating = [text for text in REFERENCES if any(isinstance(clause, RelationClause) for clause in parse(text))]
    for reference in stating:
        draft = reference.replace(" a ", " the ", 1).replace(" is ", " are ", 1)
        assert len(draft.split()) == len(reference.split())
        revised = applied(draft, revise(reference, draft))
        assert scene_of(revised) == scene_of(reference)
        assert sum(isinstance(clause, RelationClause) for clause in parse(revised)) <= 1


def test_true_words_of_the_draft_stay():
    reference = (
        "two items can be seen against a dark canvas . the top left corner holds a small red ring . "
        "the lower right area holds a huge azure plus ."
    )
    draft = reference.replace("azure", "rosy").replace("plus", "cross").replace("dark", "black")
    revised = applied(draft, revise(reference, draft))
    assert revised in {draft.replace("rosy", "azure"), draft.replace("rosy", "blue")}


def test_a_draft_too_short_for_everything_grows_at_its_end():
    reference = next(text for text in REFERENCES if len(scene_of(text).objects) == 3)
    draft = " ".join(reference.split()[:30])
    segments = revise(reference, draft)
    assert scene_of(applied(draft, segments)) == scene_of(reference)
    assert all(len(s.org.split()) == len(s.target.split()) for s in segments[:-1])
    assert draft.endswith(segments[-1].org)


def test_revisions_are_the_same_every_time():
    noisy = " ".join(VOCABULARY[::3])
    assert [revise(text, noisy) for text in REFERENCES] == [revise(text, noisy) for text in REFERENCES]


def test_an_empty_draft_has_nothing_to_quote():
    assert revise(REFERENCES[0], " ") == [("", REFERENCES[0])]


def test_no_caption_fits_a_limit_that_is_too_low():
    with pytest.raises(ValueError, match="limit"):
        nearest_caption(scene_of(REFERENCES[0]), ["red"], 20)


plain_words = st.sampled_from(["a", "A", "dog", "dogs", "runs", "on", "the", "beach", "beach.", "in", "sun"])


@given(
    st.lists(plain_words, min_size=1, max_size=25),
    st.lists(plain_words, max_size=25),
    st.sampled_from([" ", "  ", "\n"]),
)
@settings(max_examples=300, deadline=None)
def test_other_text_becomes_the_reference(draft_words, reference_words, space):
    draft, reference = space.join(draft_words), " ".join([*reference_words, "!"])
    segments = revise(reference, draft)
    assert applied(draft, segments) == reference
    assert (segments == []) == (draft.split() == reference.split())


def test_only_the_words_that_differ_are_quoted():
    segments = revise("Two brown dogs run on the wide beach.", "Two black dogs run on the beach.")
    assert segments == [("black", "brown"), ("beach.", "wide beach.")]


@pytest.mark.parametrize(
    ("reference", "draft", "expected"),
    [
        ("18.0", r"9 eggs at $2 make 18. \boxed{18}", []),
        ("18.0", r"9 eggs at $2 make 17. \boxed{17}", [(r"\boxed{17}", r"\boxed{18.0}")]),
        ("1,000", r"a \boxed{3} and so \boxed{1000}", []),
        (r"\frac{1}{2}", r"so \boxed{\frac{1}{3}} is it", [(r"\boxed{\frac{1}{3}}", r"\boxed{\frac{1}{2}}")]),
        ("5", r"\boxed{4} or \boxed{4}", [(r"or \boxed{4}", r"or \boxed{5}")]),
        ("5", r"never closed \boxed{4", [(r"never closed \boxed{4", "5")]),
    ],
)
def test_a_worked_answer_gets_the_right_result_and_keeps_its_words(reference, draft, expected):
    assert revise(reference, draft) == expected
