import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InputError
from core.ingest.formats import FORMATS, detect, reader_of
from core.ingest.rows import BadRow, RawRow

PHOTO = "data:image/png;base64,iVBORw0KGgo="
TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A ring."}]


def write(tmp_path, value, name="data.json"):
    path = tmp_path / name
    lines = name.endswith("l")
    path.write_text("\n".join(map(json.dumps, value)) if lines else json.dumps(value))
    return path


def read(tmp_path, name, value, file="data.json"):
    return list(FORMATS[name](write(tmp_path, value, file)))


def texts(found):
    return [(row.place, row.image, row.prompt, row.reference) for row in found]


def reasons(found):
    return [row.error.reason for row in found if isinstance(row, BadRow)]


def chat(*contents, **more):
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)], **more}


def image_part(url):
    return {"type": "image_url", "image_url": {"url": url}}


def test_chats_are_read_whether_the_image_stands_in_a_part_or_beside_the_messages(tmp_path):
    text = {"type": "text", "text": "What?"}
    found = read(
        tmp_path,
        "messages",
        [
            chat([image_part("a.jpg"), text], "A ring."),
            chat([text, {"type": "image"}], [{"type": "text", "text": "A ring."}], images=["a.jpg"]),
            chat("<image>What?", "A ring.", images=["a.jpg"]),
            chat([{"type": "image", "image": "a.jpg"}, text], "A ring.", images=["a.jpg"]),
            chat([{"type": "image_url", "image_url": "a.jpg"}, text], "A ring."),
        ],
    )
    assert [(row.image, row.prompt, row.reference) for row in found] == [("a.jpg", "What?", "A ring.")] * 5


def test_urls_are_passed_on_for_whoever_resolves_paths_to_reject(tmp_path):
    found = read(tmp_path, "messages", [chat([image_part(url)], "x") for url in (PHOTO, "https://example.org/a.png")])
    assert [row.image for row in found] == [PHOTO, "https://example.org/a.png"]


def test_each_question_of_a_chat_is_a_row_and_system_messages_are_dropped(tmp_path):
    record = chat("What?", "A ring.", "Where?", "Left.", "Why?", images=["a.jpg"])
    record["messages"].insert(0, {"role": "developer", "content": "Be kind."})
    found = read(tmp_path, "messages", [record])
    assert texts(found[:2]) == [
        ("data.json:0", "a.jpg", "What?", "A ring."),
        ("data.json:0#1", "a.jpg", "Where?", "Left."),
    ]
    assert reasons(found) == ["no_gpt_turn"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (chat([image_part("a.jpg"), image_part("b.jpg")], "x"), "many_images"),
        (chat([image_part("a.jpg")], "x", images=["b.jpg"]), "many_images"),
        (chat([image_part(7)], "x"), "bad_image_field"),
        (chat([{"type": "image_url"}], "x"), "bad_image_field"),
        (chat([{"type": "audio"}], "x"), "unknown_part"),
        (chat([{"type": ["text"]}], "x"), "unknown_part"),
        (chat([{"type": "text"}], "x"), "text_not_a_string"),
        (chat(["What?"], "x"), "bad_turn"),
        (chat(None, "x"), "text_not_a_string"),
        (chat("x"), "no_gpt_turn"),
        ({"messages": []}, "no_conversation"),
        ({"messages": ["x"]}, "bad_turn"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "unknown_speaker"),
        (7, "not_a_record"),
    ],
)
def test_a_chat_that_cannot_be_used_is_rejected_with_its_reason(tmp_path, bad, reason):
    found = read(tmp_path, "messages", [chat("a", "b"), bad, chat("c", "d")])
    assert len(found) == 3
    assert reasons(found) == [reason]


def coco(**more):
    images = [{"id": 9, "file_name": "9.jpg"}, {"id": "x", "file_name": "x.jpg"}, {"id": 3}, 7]
    annotations = [
        {"id": 1, "image_id": 9, "caption": "One."},
        {"id": 2, "image_id": "x", "caption": "Two."},
        {"id": 3, "image_id": 9, "caption": "Three."},
        {"id": 4, "image_id": 3, "caption": "Four."},
        {"id": 5, "image_id": 9},
        {"id": 6, "image_id": [9], "caption": ["x"]},
        "x",
    ]
    return {"info": {"images": [1]}, "annotations": annotations, "images": images} | more


def test_each_coco_caption_is_a_row_also_where_the_images_stand_behind(tmp_path):
    found = read(tmp_path, "coco", coco())
    assert texts(found[:3]) == [
        ("data.json:0", "9.jpg", "", "One."),
        ("data.json:1", "x.jpg", "", "Two."),
        ("data.json:2", "9.jpg", "", "Three."),
    ]
    assert reasons(found) == ["unknown_image", "missing_text", "unknown_image", "not_a_record"]


@pytest.mark.parametrize("key", ["images", "annotations"])
def test_an_object_that_is_not_coco_is_a_clear_error(tmp_path, key):
    with pytest.raises(InputError, match=f"has no `{key}`.*it has info"):
        read(tmp_path, "coco", coco(**{key: []}))


def test_an_image_folder_has_a_row_for_each_caption(tmp_path):
    found = read(
        tmp_path,
        "imagefolder",
        [
            {"file_name": "a.jpg", "text": "One."},
            {"image": "b.jpg", "captions": ["Two.", 3, "Four."], "question": "<image> What? "},
            {"file_name": "c.jpg"},
            {"file_name": "d.jpg", "captions": []},
            {"file_name": 7, "text": "Five."},
        ],
        "metadata.jsonl",
    )
    assert texts(row for row in found if isinstance(row, RawRow)) == [
        ("metadata.jsonl:0", "a.jpg", "", "One."),
        ("metadata.jsonl:1", "b.jpg", "What?", "Two."),
        ("metadata.jsonl:1#2", "b.jpg", "What?", "Four."),
    ]
    assert reasons(found) == ["text_not_a_string", "no_caption", "no_caption", "bad_image_field"]
    assert "file_name" in found[4].error.detail


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([{"image": "a.jpg", "conversations": TURNS}], "llava"),
        ([{"id": 1}, {"image": "a.jpg", "conversations": TURNS}], "llava"),
        ([{"image": "a.jpg", "conversations": TURNS}, {"conversations": TURNS, "revise": []}], "rediff"),
        ([{"img": "a.jpg", "ques": "q", "ans": "a", "pred": "p"}], "rediff"),
        ([chat("a", "b", images=["a.jpg"])], "messages"),
        ([{"image": "a.jpg", "original_caption": "a", "changed_caption": "b"}], "vicrit"),
        ([{"file_name": "a.jpg", "text": "x"}], "imagefolder"),
        ([{"image": "a.jpg", "captions": ["x"]}], "imagefolder"),
    ],
)
@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_format_is_told_by_its_keys(tmp_path, records, expected, name):
    path = write(tmp_path, records, name)
    assert detect(path) == expected
    assert reader_of("auto", path) is FORMATS[expected]
    text = path.read_text()
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text(text, encoding=encoding)
        assert detect(path) == expected


def test_coco_and_single_records_are_told_apart(tmp_path):
    assert detect(write(tmp_path, coco())) == "coco"
    assert detect(write(tmp_path, {"image": "a.jpg", "conversations": TURNS})) == "llava"
    path = tmp_path / "pretty.json"
    path.write_text(json.dumps({"conversations": TURNS, "images": ["a.jpg"]}, indent=1))
    assert detect(path) == "llava"


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"picture": "a.jpg", "words": "x"}], "its keys are picture, words; name it: llava, sharegpt"),
        ([1, 2], "its first records are no objects"),
        ([], "its first records are no objects"),
    ],
)
def test_an_undecided_format_is_a_clear_error(tmp_path, records, message):
    with pytest.raises(InputError, match=message):
        detect(write(tmp_path, records))


def test_a_missing_file_or_format_is_a_clear_error(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        detect(tmp_path / "none.json")
    with pytest.raises(InputError, match="unknown format 'csv'; there are auto, llava"):
        reader_of("csv", tmp_path / "none.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["image", "images", "messages", "role", "content", "type", "text", "image_url", "url", "captions"]
            ),
            inner | st.sampled_from(["user", "assistant", "text", "image_url"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(JSON, min_size=1, max_size=5), st.sampled_from(["llava", "messages", "vicrit", "imagefolder"]))
def test_whatever_json_comes_each_record_becomes_rows(tmp_path_factory, values, name):
    path = write(tmp_path_factory.mktemp("any"), values)
    places = [row.place.split("#")[0] for row in FORMATS[name](path)]
    assert list(dict.fromkeys(places)) == [f"data.json:{index}" for index in range(len(values))]


@settings(max_examples=50, deadline=None)
@given(st.lists(JSON, min_size=1, max_size=5))
def test_whatever_stands_in_coco_each_annotation_becomes_a_row(tmp_path_factory, values):
    found = read(tmp_path_factory.mktemp("coco"), "coco", {"images": [*values, 1], "annotations": values})
    assert len(found) == len(values)


@pytest.mark.parametrize(("revised", "format_"), [(1, "llava"), (7, "rediff"), (30, "rediff")])
def test_drafts_with_corrections_are_never_taken_for_clean_captions(tmp_path, revised, format_):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A wrong cat."}]
    faults = {"revise": [{"org": "cat", "target": "dog"}]}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"conversations": turns, **(faults if i < revised else {})} for i in range(30)]))
    assert detect(path) == format_
    read = list(FORMATS["llava"](path))
    assert [row.error.reason for row in read[:revised]] == ["revised_draft"] * revised


def test_parquet_of_redrafts_rows_brings_their_corrections(tmp_path):
    rows = [
        {
            "img": "a.jpg",
            "ques": "<image>What?",
            "ans": "A dog.",
            "pred": "A cat.",
            "revise": [{"org": "cat", "target": "dog"}],
        }
    ]
    path = tmp_path / "rows.parquet"
    pl.DataFrame(rows).write_parquet(path)
    (row,) = FORMATS["parquet"](path)
    assert (row.image, row.prompt, row.reference) == ("a.jpg", "What?", "A dog.")
    assert row.correction.segments == (("cat", "dog"),)
