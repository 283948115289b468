import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.errors import RowError
from core.ingest.rows import BadRow
from core.ingest.vicrit import kind_of, locate, rows

DATA = Path(__file__).parents[2] / "data" / "vicrit" / "pairs.json"


def record(original, changed, before, after, **more):
    return {
        "image": "a.jpg",
        "problem": "<image>\nDescribe.",
        "original_caption": original,
        "changed_caption": changed,
        "solution_original": before,
        "solution_target": after,
    } | more


def read(tmp_path, *records):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(records))
    return list(rows(path))


def words(text):
    return " ".join(text.split())


def test_every_published_pair_is_accepted_and_its_span_gives_the_changed_caption():
    published = json.loads(DATA.read_text())
    found = list(rows(DATA))
    assert len(found) == len(published) == 60
    for raw, row in zip(published, found, strict=True):
        pair = row.pair
        assert row.reference == raw["original_caption"].strip()
        assert row.reference[: pair.start] + pair.target + row.reference[pair.end :] == pair.changed
        assert words(pair.changed) == words(raw["changed_caption"])
        assert words(row.reference[pair.start : pair.end]) == words(raw["solution_original"])
        assert words(pair.target) == words(raw["solution_target"])
    assert Counter(row.pair.kind for row in found) == COUNTS
    spaced = sum(row.pair.changed != raw["changed_caption"].strip() for raw, row in zip(published, found, strict=True))
    assert spaced == 10


COUNTS = {"object": 27, "attribute": 24, "relation": 9}


@pytest.mark.parametrize(
    ("original", "changed", "before", "after", "expected"),
    [
        ("A red ring.", "A blue ring.", "red", "blue", (2, 5, "blue")),
        ("A young man.", "A tall young man.", "", "tall", (2, 2, "tall ")),
        ("A man", "A man runs", "", "runs", (5, 5, " runs")),
        ("A man", "Old A man", "", "Old ", (0, 0, "Old ")),
        ("A red ring.", "A ring.", "red", "", (2, 6, "")),
        ("A ring here", "A ring", "here", "", (6, 11, "")),
        ("a cat sees a dog", "a cat sees an old dog", "a", "an old", (11, 12, "an old")),
        ("a cat  sees\na dog", "a cat sees a fox", "a dog", "a fox", (12, 17, "a fox")),
        ("a cat  sees a dog", "a cat fed sees a dog", "", "fed", (6, 6, "fed")),
        ("a  red  ring", "a ring", "red", "", (3, 8, "")),
        ("a cat and a dog", "a dog and a cat", "cat and a dog", "dog and a cat", (2, 15, "dog and a cat")),
        ("tall tall man", "tall tall tall man", "", "tall", (0, 0, "tall ")),
    ],
)
def test_the_span_is_where_the_solution_stands(original, changed, before, after, expected):
    start, end, target = locate(original, changed, before, after)
    assert (start, end, target) == expected
    assert words(original[:start] + target + original[end:]) == words(changed)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record("A red ring.", "A red  ring. ", "red", "red"), "captions_equal"),
        (record("A red ring.", "A blue ring.", "green", "blue"), "solution_not_found"),
        (record("A red ring.", "A blue ring.", "red", "green"), "solution_not_found"),
        (record("A blue ring.", "A red ring.", "red", "blue"), "solution_not_found"),
        (record("A red ring.", "The blue ring.", "red", "blue"), "captions_differ_elsewhere"),
        (record("A red red ring.", "A blue blue ring.", "red", "blue"), "captions_differ_elsewhere"),
        (record("A red ring.", "A blue ring.", "", ""), "captions_differ_elsewhere"),
        (record(" ", "A blue ring.", "red", "blue"), "empty_caption"),
        (record("red", " ", "red", ""), "empty_caption"),
        (record(3, "A blue ring.", "red", "blue"), "text_not_a_string"),
        (record("A red ring.", "A blue\ud800 ring.", "red", "blue\ud800"), "invalid_unicode"),
        (record("A red ring.", "A blue ring.", None, "blue"), "text_not_a_string"),
        ({"image": "a.jpg"}, "missing_text"),
        (record("A red ring.", "A blue ring.", "red", "blue", image=["a.jpg", "b.jpg"]), "many_images"),
        (["a red ring"], "not_a_record"),
    ],
)
def test_a_pair_that_does_not_fit_is_rejected_with_its_reason(tmp_path, bad, reason):
    good = record("A red ring.", "A blue ring.", "red", "blue")
    before, rejected, after = read(tmp_path, good, bad, good)
    assert before.pair == after.pair
    assert isinstance(rejected, BadRow)
    assert (rejected.place, rejected.error.reason) == ("pairs.json:1", reason)


def test_a_row_is_asked_its_problem_without_the_placeholder(tmp_path):
    row, bare = read(
        tmp_path,
        record("A red ring.", "A blue ring.", "red", "blue", type="replace_att"),
        record("A red ring.", "A blue ring.", "red", "blue", problem=None),
    )
    assert (row.image, row.prompt, row.pair.kind) == ("a.jpg", "Describe.", "attribute")
    assert (bare.prompt, bare.pair.kind) == ("", None)


def test_the_kind_is_taken_where_the_type_tells():
    names = ["add_att", "swap_obj", "replace_rel", "count", "place", "existence", "", None, 7, ["add_att"]]
    assert [kind_of(name) for name in names] == [
        "attribute", "object", "relation", "count", "place", None, None, None, None, None,
    ]  # fmt: skip


TEXT = st.text(st.sampled_from("ab \n\u2003é🎈"), max_size=8)


@given(TEXT, TEXT, TEXT, TEXT)
@example("a", " ", "", "a")
def test_any_replacement_is_found_and_reproduced(left, before, after, right):
    original, changed = (left + before + right).strip(), (left + after + right).strip()
    if words(original) == words(changed):
        with pytest.raises(RowError, match="captions_equal"):
            locate(original, changed, before, after)
        return
    if (left + before + right, left + after + right) != (original, changed):
        return  # the solutions may hold some of the captions' outer white space
    start, end, target = locate(original, changed, before, after)
    assert words(original[:start] + target + original[end:]) == words(changed)


@given(st.lists(st.sampled_from(["a", "red", "é", "🎈", "tall"]), min_size=2, max_size=6), st.data())
def test_words_put_in_left_out_or_replaced_are_found(tokens, data):
    start = data.draw(st.integers(0, len(tokens)))
    end = data.draw(st.integers(start, len(tokens)))
    new = data.draw(st.lists(st.sampled_from(["blue", "an", "🎈"]), max_size=2))
    spaced = "".join(token + data.draw(st.sampled_from([" ", "  ", "\n"])) for token in tokens).strip()
    changed = " ".join([*tokens[:start], *new, *tokens[end:]])
    if not changed or changed == " ".join(tokens):
        return
    at, to, target = locate(spaced, changed, " ".join(tokens[start:end]), " ".join(new))
    assert words(spaced[:at] + target + spaced[to:]) == changed
