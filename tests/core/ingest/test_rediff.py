import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.ingest.layouts import written
from core.ingest.rediff import corrected, rows
from core.ingest.rows import BadRow, RawRow

DRAFT = "A man in a white shirt shirt holds a red kite."


def talk(draft=DRAFT, question="<image>\nDescribe."):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": draft}]


def asked(draft=DRAFT, **more):
    return {"image": "a/b.jpg", "conversations": talk(draft), **more}


def predicted(draft=DRAFT, **more):
    return {"img": "a/b.jpg", "ques": "What?", "ans": "A man.", "pred": draft, **more}


def segment(org, target):
    return {"org": org, "target": target}


def read(tmp_path, *records):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records))
    return list(rows(path))


def again(row):
    return written(row.correction, row.image)


def test_a_published_row_becomes_its_draft_with_the_corrections_applied(tmp_path):
    record = {"id": 3} | asked(revise=[segment("a white shirt shirt", "a blue shirt"), segment("red", "green")])
    (row,) = read(tmp_path, record)
    assert (row.image, row.prompt) == ("a/b.jpg", "Describe.")
    assert row.reference == "A man in a blue shirt holds a green kite."
    correction = row.correction
    assert (correction.layout, correction.verdict, correction.draft) == ("conversations", "revised", DRAFT)
    assert correction.segments == (("a white shirt shirt", "a blue shirt"), ("red", "green"))
    assert correction.extra == '{"id": 3}'
    assert list(again(row).items()) == list(record.items())


def test_the_reference_is_the_answer_where_the_row_has_one(tmp_path):
    right, revised, open_, bare = read(
        tmp_path,
        predicted(revise="right"),
        predicted(revise=[segment("nowhere", "x")]),
        predicted(),
        {"img": "a.jpg", "ques": "What?", "pred": DRAFT, "revise": "right"},
    )
    assert [row.reference for row in (right, revised, open_)] == ["A man."] * 3
    assert [row.correction.verdict for row in (right, revised, open_)] == ["right", "revised", None]
    assert bare.reference == DRAFT


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([("red", "green")], "A man in a white shirt shirt holds a green kite."),
        ([("shirt", "coat"), ("red", "green")], None),
        ([("absent", "coat"), ("red", "green")], None),
        ([("a red", "a green"), ("red kite", "blue kite")], None),
        ([("", "x")], None),
        ([(" red", ""), ("A man", "Two men")], "Two men in a white shirt shirt holds a kite."),
        ([("red", "red"), ("A man", "Two men")], None),
        ([], DRAFT),
    ],
)
def test_a_draft_is_corrected_by_all_its_segments_or_by_none(segments, expected):
    assert corrected(DRAFT, tuple(segments)) == expected


@pytest.mark.parametrize("segments", [[("shirt", "coat")], [("absent", "x"), ("red", "green")], [("red", "red")]])
def test_a_text_with_a_known_fault_is_no_clean_caption(tmp_path, segments):
    record = asked(revise=[segment(*one) for one in segments])
    (row,) = read(tmp_path, record)
    assert row.reference == ""
    assert row.correction.segments == tuple(segments)
    assert again(row) == record


@pytest.mark.parametrize(
    ("revise", "verdict", "segments"),
    [
        ("right", "right", ()),
        ("Right.", "right", ()),
        ([], "right", ()),
        (None, None, ()),
        ('[{"org": "red", "target": "green"}]', "revised", (("red", "green"),)),
        ('Sure:\n```json\n[{"org": "red", "target": "green"}]\n```', "revised", (("red", "green"),)),
        ([{"org": "red", "target": "green", "why": 1}], "revised", (("red", "green"),)),
    ],
)
@pytest.mark.parametrize("layout", [asked, predicted])
def test_every_way_to_write_a_revision_is_understood_and_comes_out_as_it_was(
    tmp_path, layout, revise, verdict, segments
):
    record = layout(revise=revise)
    (row,) = read(tmp_path, record)
    assert (row.correction.verdict, row.correction.segments) == (verdict, segments)
    assert again(row) == record


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"image": "a.jpg"}, "no_draft"),
        (asked(""), "empty_draft"),
        (predicted(""), "empty_draft"),
        (predicted(7), "text_not_a_string"),
        ({"img": "a.jpg", "pred": "x"}, "missing_text"),
        (asked("x \ud800"), "invalid_unicode"),
        (asked(revise="I cannot see the image."), "bad_revise"),
        (asked(revise=7), "bad_revise"),
        (asked(revise={"org": "red", "target": "green"}), "bad_revise"),
        (asked(revise=["red"]), "bad_segment"),
        (asked(revise=[{"org": "red"}]), "bad_segment"),
        (asked(revise=[segment("red", 7)]), "text_not_a_string"),
        (asked(revise=[segment("red", "\ud800")]), "invalid_unicode"),
        (asked() | {"conversations": talk() + talk()}, "many_answers"),
        (asked() | {"conversations": talk()[:1]}, "no_gpt_turn"),
        (asked() | {"conversations": []}, "no_conversation"),
        (asked() | {"image": ["a.jpg", "b.jpg"]}, "many_images"),
        ("x", "not_a_record"),
    ],
)
def test_a_row_that_is_no_draft_is_rejected_with_its_reason(tmp_path, bad, reason):
    first, rejected, last = read(tmp_path, asked(), bad, asked())
    assert first.correction == last.correction
    assert isinstance(rejected, BadRow)
    assert (rejected.place, rejected.error.reason) == ("data.json:1", reason)


def test_values_that_are_nested_as_deeply_as_json_can_be_read_crash_nothing(tmp_path):
    deep = json.loads("[" * 900 + "]" * 900)
    path = tmp_path / "data.json"
    path.write_text("[" + json.dumps(asked())[:-1] + ', "x": ' + json.dumps(deep) + "}]")
    (row,) = rows(path)
    assert isinstance(row, RawRow) or row.error.reason == "bad_json"


TEXT = st.text(min_size=1, max_size=12)
ANY_TEXT = st.text(st.characters(codec=None), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)
OTHERS = st.dictionaries(ANY_TEXT.filter(lambda key: key not in ("conversations", "pred")), JSON, max_size=3)
REVISE = st.just("right") | st.just([]) | st.none() | st.lists(st.builds(segment, TEXT, TEXT), min_size=1, max_size=3)


@st.composite
def records(draw):
    draft = "".join(draw(st.lists(TEXT, min_size=1, max_size=3)))
    revise = {"revise": draw(REVISE)} if draw(st.booleans()) else {}
    if isinstance(revise.get("revise"), list) and revise["revise"]:
        revise["revise"][0]["org"] = draft
    if draw(st.booleans()):
        turns = talk(draft, draw(TEXT))
        if draw(st.booleans()):
            turns = [
                {"from": "system", "value": "Be kind."},
                *({"role": t["from"], "content": t["value"]} for t in turns),
            ]
        record = {"image": draw(st.sampled_from(["a.jpg", "", None, ["a.jpg"], []])), "conversations": turns}
    else:
        record = {"img": "a.jpg", "ques": draw(TEXT), "ans": draw(TEXT | st.none()), "pred": draft}
    record = draw(OTHERS) | {key: value for key, value in record.items() if draw(st.booleans()) or key not in MAY_MISS}
    return dict(draw(st.permutations(list((record | revise).items()))))


MAY_MISS = ("image", "img", "ans")


@settings(max_examples=300, deadline=None)
@given(st.lists(records(), min_size=1, max_size=3))
def test_a_row_that_is_read_and_written_is_the_same(tmp_path_factory, written_rows):
    path = tmp_path_factory.mktemp("rediff") / "data.json"
    path.write_text(json.dumps(written_rows))
    for record, row in zip(written_rows, rows(path), strict=True):
        if isinstance(row, BadRow):
            assert row.error.reason in ("bad_image_field", "many_images")
            continue
        assert exact(again(row)) == exact(record)


def exact(value):
    return json.dumps(value, sort_keys=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(JSON | st.dictionaries(st.sampled_from(["image", "conversations", "revise", "pred", "ques"]), JSON)))
def test_whatever_json_comes_every_row_is_accounted_for(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("any") / "data.json"
    path.write_text(json.dumps(values))
    assert len(list(rows(path))) == len(values)
