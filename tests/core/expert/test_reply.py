"""What real models send, and what must become of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.expert.reply import MAX_SEGMENTS, parse_reply

ONE = [("red", "blue")]
TWO = [("red", "blue"), ("a ring", "the ring")]
OBJECTS = [{"org": org, "target": target} for org, target in TWO]


@pytest.mark.parametrize(
    ("raw", "segments"),
    [
        ('{"segments": [{"org": "red", "target": "blue"}]}', ONE),
        ('[{"org": "red", "target": "blue"}]', ONE),
        ('{"org": "red", "target": "blue"}', ONE),
        ('```json\n{"segments": [{"org": "red", "target": "blue"}]}\n```', ONE),
        ('```\n[{"org": "red", "target": "blue"}]', ONE),
        ('Here you are:\n\n[{"org": "red", "target": "blue"}]\n\nI hope [this] helps!', ONE),
        ('The [first] colour is wrong. {"org": "red", "target": "blue"}', ONE),
        ("{'segments': [{'org': 'red', 'target': 'blue'},]}", ONE),
        ('[{"org": "red", "target": "blue",}, {"org": "a ring" "target": "the ring"}]', TWO),
        ('{"org": "red", "target": "blue"}\n{"org": "a ring", "target": "the ring"}', TWO),
        ('{segments: [{org: "red", target: "blue"}]}', ONE),
        *((json.dumps({name: OBJECTS}), TWO) for name in ("revise", "Revisions", "corrections", "edits", "whatever")),
        ('{"verdict": "wrong", "segments": [{"org": "red", "target": "blue"}]}', ONE),
        ('[["red", "blue"], ["a ring", "the ring"]]', TWO),
        ('[{"original": "red", "corrected": "blue"}]', ONE),
        ('"{\\"segments\\": [{\\"org\\": \\"red\\", \\"target\\": \\"blue\\"}]}"', ONE),
        ('<think>the draft says {"org": "x"}, hm [1, 2]</think>[{"org": "red", "target": "blue"}]', ONE),
        ('First try: [{"org": "x", "target": "y"}]. Better: [{"org": "red", "target": "blue"}]', ONE),
        ('[{"org": 3, "target": 4}]', [("3", "4")]),
        ('{"org": "red", "target": ""}', [("red", "")]),
        ('[{"org": "red", "target": null}]', [("red", None)]),
        ('[{"org": "red", "target": "blue"}, 7]', [("red", "blue"), (7, None)]),
        # cut off: complete items are kept, none is made up
        ('{"segments": [{"org": "red", "target": "blue"}, {"org": "a ring", "tar', ONE),
        ('{"segments": [{"org": "red", "target": "blue"}, {"org": "a ring", "target": "the r', ONE),
        ("[{'org': 'red', 'target': 'blue'}, {'org': 'a", ONE),
    ],
)
def test_segments_are_found(raw, segments):
    parsed = parse_reply(raw)
    assert parsed.verdict == "revised"
    assert [tuple(segment) for segment in parsed.segments] == segments


@pytest.mark.parametrize(
    "raw",
    [
        '{"segments": []}',
        "[]",
        "```json\n[]\n```",
        "{'segments': []}",
        "Right.",
        '"right"',
        "RIGHT",
        "**Right**",
        "correct!",
        "Right. The prediction says what the image shows.",
        '{"answer": "right"}',
        '{"verdict": "right"}',
        '{"right": true}',
        '["right"]',
        "```\nright\n```",
    ],
)
def test_right_is_right(raw):
    assert parse_reply(raw).verdict == "right"


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (None, "empty_reply"),
        ("", "empty_reply"),
        (" \n", "empty_reply"),
        ("null", "no_json"),
        ("12", "no_json"),
        ("true", "no_json"),
        ("{}", "no_json"),
        ("I cannot help with that.", "no_json"),
        ("Right. But the ring should be blue.", "no_json"),
        ("Right side of the image: the ring is wrong", "no_json"),
        ('{"segments": null}', "no_json"),
        ('{"segments": [{"org": "red", "tar', "no_json"),
        ("[" * 50_000, "no_json"),
        ("x" * 200_000, "reply_too_long"),
    ],
)
def test_no_usable_reply_is_a_failure_that_says_why(raw, problem):
    parsed = parse_reply(raw)
    assert (parsed.verdict, parsed.problems[0], parsed.segments) == ("failed", problem, ())


def test_a_flood_of_segments_is_bounded():
    parsed = parse_reply(json.dumps([{"org": str(i), "target": "x"} for i in range(1000)]))
    assert len(parsed.segments) == MAX_SEGMENTS
    assert "too_many_segments" in parsed.problems


@given(st.text(max_size=60))
def test_no_text_whatever_raises(raw):
    parse_reply(raw)


@given(st.text(alphabet="[]{}\"':,orgtae \n`", max_size=60))
def test_no_nearly_json_raises(raw):
    parse_reply(raw)


WORD = st.text(alphabet=st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)


@given(
    st.lists(st.tuples(WORD, WORD), min_size=1, max_size=5),
    st.sampled_from(["{}", "Sure:\n{}\nDone.", "```json\n{}\n```"]),
)
def test_what_was_asked_for_is_read_exactly_whatever_surrounds_it(pairs, frame):
    raw = frame.replace("{}", json.dumps({"segments": [{"org": org, "target": target} for org, target in pairs]}))
    parsed = parse_reply(raw)
    assert [tuple(segment) for segment in parsed.segments] == pairs
