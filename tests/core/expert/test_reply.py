"""What real models send, and what must become of it."""

import json
import re

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
        ("{'org': 'the dog's bone', 'target': 'a {big} cat'}", [("the dog's bone", "a {big} cat")]),
        ('{"segments": [{"org": "x } y", "target": "z",}]}', [("x } y", "z")]),
        ('{"segments": [{"org": "say "hi"", "target": "say hello"}]}', [('say "hi"', "say hello")]),
        ('{"segments": [{"org": "5" tall", "target": "6 tall"}]}', [('5" tall', "6 tall")]),
        ("{“org”: “red”, “target”: “blue”}", ONE),
        ('{"response": {"segments": [{"org": "red", "target": "blue"}]}}', ONE),
        ('{"segments": [{"segment": {"org": "red", "target": "blue"}}]}', ONE),
        ('{"segments": {"org": "red", "target": "blue"}}', ONE),
        ('hm, {"org": "x", "target": "y"}?</think>\n[{"org": "red", "target": "blue"}]', ONE),
        ('{"org": "<think>red</think>", "target": "blue"}', [("<think>red</think>", "blue")]),
        ('```json [{"org": "red", "target": "blue"}] ```<|im_end|>', ONE),
        ('[{"org": "red", "target": "blue"} // the colour\n]', ONE),
        ('Right\n[{"org": "red", "target": "blue"}]', ONE),
        ('{"right": true, "segments": [{"org": "red", "target": "blue"}]}', ONE),
        ('[null, {"org": "red", "target": "blue"}]', [(None, None), ("red", "blue")]),
        # cut off: complete items are kept, none is made up
        ('{"segments": [{"org": "red", "target": "blue"}, ', ONE),
        ('{"segments": [{"org": "red", "target": "blue"}', ONE),
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
        "'right'",
        "<think>red, or blue?</think> Right",
        "Answer: right",
        "**Final answer:** Right.",
        "Right, the prediction is correct.",
        "The prediction is entirely correct.",
        "No corrections needed.",
        "There are no errors.",
        '{"verdict": "Right.", "explanation": "as in the image"}',
        '{"is_correct": true}',
        '{"result": {"segments": []}}',
        '{"segments": ["right"]}',
        "[]\n\nThe draft says what [the image] shows.",
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
        ("{'segments': None}", "no_json"),
        ('{"segments": {}}', "no_json"),
        ('{"is_correct": false}', "no_json"),
        ("0", "no_json"),
        ('""', "no_json"),
        ("The prediction is not correct.", "no_json"),
        ("No errors, but the ring is blue.", "no_json"),
        ("Correct: red -> blue", "no_json"),
        ("wrong", "no_json"),
        ('<think>{"org": "red", "target": "blue"} or', "empty_reply"),
        # what a string quotes is no item, whether it is closed or not
        ('{"segments": [{"org": "{\\"org\\": \\"a\\", \\"target\\": \\"b\\"}", "tar', "no_json"),
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


# without "]": a reply cut off behind "}]" within a string looks like one with a quotation mark too few
OPEN = WORD.filter(lambda text: "]" not in text)


@given(st.lists(st.tuples(OPEN, OPEN), min_size=1, max_size=4), st.data(), st.booleans())
def test_a_reply_that_is_cut_off_anywhere_keeps_its_complete_items_alone(pairs, data, bare):
    items = [{"org": org, "target": target} for org, target in pairs]
    raw = json.dumps(items if bare else {"segments": items})
    cut = raw[: data.draw(st.integers(0, len(raw) - 1))]
    parsed = parse_reply(cut)
    complete = sum(cut.startswith(raw[:end]) for end in _ends(raw))
    assert [tuple(segment) for segment in parsed.segments] == pairs[:complete]
    assert parsed.verdict == ("revised" if complete else "failed")
    assert not complete or "truncated" in parsed.problems or cut.endswith("]")


def _ends(raw: str) -> list[int]:
    """Where each item of a reply ends: the last brace is the reply's own."""
    decoder, ends, at = json.JSONDecoder(), [], raw.index("[") + 1
    while raw[at : at + 1] == "{":
        _, at = decoder.raw_decode(raw, at)
        ends.append(at)
        at += 2
    return ends


PLAIN = st.text(alphabet="ab {}[]\"'", min_size=1, max_size=10).filter(lambda text: text.strip() == text)


@given(st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=3))
def test_pythons_own_quotes_are_read(pairs):
    """repr() writes 'a "b"' and "it's"; a model that learned from Python does, too."""
    raw = repr([{"org": org, "target": target} for org, target in pairs])
    if "\\" not in raw and not re.search(r"'\s*[:,}\]]|[{\[,:\s]'", "".join(org + target for org, target in pairs)):
        assert [tuple(segment) for segment in parse_reply(raw).segments] == pairs


@pytest.mark.parametrize(
    ("raw", "verdict"),
    [("There is nothing to correct: []", "right"), ("The list[] of things is wrong", "failed"), ("so: [].", "right")],
)
def test_empty_brackets_are_an_answer_at_the_end_alone(raw, verdict):
    assert parse_reply(raw).verdict == verdict


@pytest.mark.parametrize("depth", [500, 2000, 20_000])
def test_brackets_without_end_are_a_failure_and_do_not_raise(depth):
    for value in ("[" * depth, "(" * depth):
        assert parse_reply('so: {"a": ' + value + "}").verdict == "failed"
