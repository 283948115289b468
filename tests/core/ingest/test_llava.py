import hashlib
import json
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InputError
from core.ingest.formats import FORMATS
from core.ingest.images import decode
from core.ingest.records import read_records
from core.ingest.samples import CaptionLimit, Ingestor, split_of
from core.ingest.settings import IngestSettings
from core.ingest.sources import FolderImages
from data_contracts import Rejects, Samples

DATA = Path(__file__).parents[2] / "data" / "ingest"
IMAGE = "dev-1021-0-0.png"


class Shelf(dict):
    def put(self, data):
        sha = hashlib.sha256(data).hexdigest()
        self[sha] = data
        return sha


def row(caption="A red ring.", prompt="<image>\nDescribe.", image=IMAGE, **more):
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": caption}]
    return {"image": image, "conversations": turns, **more}


def run(path, *, reader="llava", images=DATA / "images", shelf=None, caption_limit=None, **options):
    shelf = Shelf() if shelf is None else shelf
    ingestor = Ingestor(
        images=images and FolderImages(images),
        put_image=shelf.put,
        settings=IngestSettings(**options),
        caption_limit=caption_limit,
    )
    batches = list(ingestor.batches(FORMATS[reader](path)))
    for batch in batches:
        assert batch.rows_in == len(batch.samples) + len(batch.rejects)
        Samples.validate(batch.samples)
        Rejects.validate(batch.rejects)
    return pl.concat([batch.samples for batch in batches]), pl.concat([batch.rejects for batch in batches])


def ingest(tmp_path, rows, **options):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows))
    return run(path, **options)


def reasons(rejects):
    return Counter(rejects["reason"].to_list())


def test_real_images_and_captions_come_through_as_an_image_folder():
    shelf = Shelf()
    samples, rejects = run(DATA / "metadata.jsonl", reader="imagefolder", shelf=shelf)
    assert len(samples) == 16
    assert rejects.is_empty()
    assert len(shelf) == 8
    assert set(samples["image_sha"]) == set(shelf)
    originals = {path.read_bytes() for path in (DATA / "images").iterdir()}
    assert set(shelf.values()) == originals
    assert all(decode(data).shape[2] == 3 for data in shelf.values())
    assert samples["prompt"].unique().to_list() == ["Describe the image."]
    assert samples.group_by("image_sha").agg(pl.col("split").n_unique())["split"].max() == 1
    assert samples["source"].to_list()[:2] == ["metadata.jsonl:0", "metadata.jsonl:0#1"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(caption=""), "empty_caption"),
        (row(caption=" \n "), "empty_caption"),
        (row(caption=123), "text_not_a_string"),
        (row(caption="a \ud800 b"), "invalid_unicode"),
        (row(caption="x" * 20_001), "caption_too_long"),
        (row(prompt="x" * 20_001), "prompt_too_long"),
        (row(caption="an <image> token"), "control_token"),
        (row(prompt="<image><image>\nDescribe."), "placeholder_count"),
        (row(image=""), "no_image"),
        (row(image=None), "no_image"),
        (row(image=["a.png", "b.png"]), "many_images"),
        (row(image=7), "bad_image_field"),
        (row(image="nothing.png"), "missing_image"),
        (row(image="../SOURCE.md"), "outside_image_root"),
        (row(image="https://example.org/a.png"), "remote_image"),
        (row(image="\ud800.png"), "missing_image"),
        ("a string", "not_a_record"),
        (None, "not_a_record"),
        ({"image": IMAGE}, "no_conversation"),
        ({"image": IMAGE, "conversations": []}, "no_conversation"),
        ({"image": IMAGE, "conversations": ["hello"]}, "bad_turn"),
        ({"image": IMAGE, "conversations": [{"from": "human", "value": "q"}]}, "no_gpt_turn"),
        ({"image": IMAGE, "conversations": [{"from": "gpt", "value": "a"}]}, "no_human_turn"),
        ({"image": IMAGE, "conversations": [{"from": "narrator", "value": "a"}]}, "unknown_speaker"),
        (
            {"image": IMAGE, "conversations": [{"from": f, "value": "x"} for f in ("human", "human", "gpt")]},
            "turns_not_alternating",
        ),
    ],
)
def test_each_bad_row_is_rejected_with_its_reason_and_costs_no_other_row(tmp_path, bad, reason):
    samples, rejects = ingest(tmp_path, [row("before"), bad, row("after")])
    assert samples["reference"].to_list() == ["before", "after"]
    assert rejects.select("stage", "row_id", "outcome", "reason").rows() == [
        ("ingest", "data.json:1", "rejected", reason)
    ]


def test_a_broken_image_is_decoded_once_and_rejects_each_of_its_rows(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "page.jpg").write_bytes(b"<html>404</html>")
    (images / "empty.jpg").write_bytes(b"")
    rows = [row("a", image="page.jpg"), row("b", image="page.jpg"), row("c", image="empty.jpg")]
    samples, rejects = ingest(tmp_path, rows, images=images)
    assert samples.is_empty()
    assert reasons(rejects) == {"not_an_image": 2, "empty_file": 1}


def test_same_image_bytes_prompt_and_caption_under_another_name_is_a_duplicate(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("one.png", "two.png"):
        (images / name).write_bytes((DATA / "images" / IMAGE).read_bytes())
    rows = [row(image="one.png"), row(image="two.png"), row(image="two.png", prompt="Other?")]
    samples, rejects = ingest(tmp_path, rows, images=images)
    assert len(samples) == 2
    assert reasons(rejects) == {"duplicate": 1}


def test_each_question_of_a_conversation_becomes_a_sample(tmp_path):
    turns = ["<image>\nWhat?", "A ring.", "Where?", "Left.", "Why?"]
    conversation = [{"from": "system", "value": "Be kind."}] + [
        {"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)
    ]
    samples, rejects = ingest(tmp_path, [{"image": IMAGE, "conversations": conversation}])
    assert samples.select("prompt", "reference", "source").rows() == [
        ("What?", "A ring.", "data.json:0"),
        ("Where?", "Left.", "data.json:0#1"),
    ]
    assert rejects.select("row_id", "reason").rows() == [("data.json:0#2", "no_gpt_turn")]


def test_role_and_content_are_read_as_from_and_value(tmp_path):
    conversation = [{"role": "user", "content": "<image>hi"}, {"role": "assistant", "content": "hello"}]
    samples, _ = ingest(tmp_path, [{"image": IMAGE, "conversations": conversation, "id": 3, "unknown": {}}])
    assert samples.select("prompt", "reference").rows() == [("hi", "hello")]


def test_prompt_of_only_the_placeholder_takes_the_default_or_is_rejected(tmp_path):
    samples, _ = ingest(tmp_path, [row(prompt="<image>")], default_prompt="Say what you see.")
    assert samples["prompt"].to_list() == ["Say what you see."]
    _, rejects = ingest(tmp_path, [row(prompt="<image>")], default_prompt="")
    assert reasons(rejects) == {"empty_prompt": 1}


def test_text_only_rows_are_taken_when_asked_for(tmp_path):
    samples, rejects = ingest(tmp_path, [row(image=None, prompt="Hi?")], images=None, text_only=True)
    assert samples["image_sha"].to_list() == [None]
    assert rejects.is_empty()


def test_captions_over_the_token_limit_are_rejected(tmp_path):
    limit = CaptionLimit(count=lambda text: len(text.split()), max_tokens=3)
    samples, rejects = ingest(tmp_path, [row("one two three"), row("one two three four")], caption_limit=limit)
    assert samples["reference"].to_list() == ["one two three"]
    assert reasons(rejects) == {"caption_too_long": 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("lines", [False, True])
def test_every_unicode_encoding_is_read(tmp_path, encoding, lines):
    rows = [row("naïve 名前 🎈"), row("второй")]
    text = "\n".join(json.dumps(r, ensure_ascii=False) for r in rows) if lines else json.dumps(rows, ensure_ascii=False)
    path = tmp_path / ("data.jsonl" if lines else "data.json")
    path.write_bytes(text.encode(encoding))
    samples, rejects = run(path)
    assert samples["reference"].to_list() == ["naïve 名前 🎈", "второй"]
    assert rejects.is_empty()


def test_a_broken_line_and_invalid_bytes_cost_only_their_own_row(tmp_path):
    lines = [json.dumps(row("a")), '{"image": ', "", '{"n": ' + "9" * 5000 + "}", "[" * 100_000, json.dumps(row("b"))]
    blob = "\n".join(lines).encode() + b"\n" + json.dumps(row("CAF?")).encode().replace(b"?", b"\xe9") + b"\n"
    path = tmp_path / "data.jsonl"
    path.write_bytes(blob)
    samples, rejects = run(path)
    assert samples["reference"].to_list() == ["a", "b"]
    assert reasons(rejects) == {"bad_json": 3, "invalid_unicode": 1}
    assert "line 2" in rejects["detail"][0]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
@pytest.mark.parametrize(
    "blob",
    [
        json.dumps([row()]).encode("utf-16")[:-1],
        json.dumps([row()]).encode("utf-32")[:-3],
        json.dumps(row()).encode("utf-16-le") + b"\x00\xd8",
    ],
    ids=["cut UTF-16", "cut UTF-32", "half a pair"],
)
def test_a_file_that_is_cut_off_within_a_character_is_a_clear_error(tmp_path, name, blob):
    path = tmp_path / name
    path.write_bytes(blob)
    with pytest.raises(InputError, match=f"{name} looks like utf-.*write it anew as UTF-8"):
        list(read_records(path))


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
@pytest.mark.parametrize("rest", [json.dumps([row()]), json.dumps([row()]) + "\n", "", "\0" * 4096])
def test_a_file_that_begins_with_nul_is_a_clear_error(tmp_path, name, rest):
    path = tmp_path / name
    path.write_bytes(b"\0" + rest.encode())
    with pytest.raises(InputError, match=f"{name} begins with a NUL byte"):
        list(read_records(path))


def test_json_lines_are_known_without_their_suffix_and_a_single_object_is_one_row(tmp_path):
    path = tmp_path / "data.json"
    path.write_text("\n".join(json.dumps(row(text)) for text in "abc"))
    assert len(run(path)[0]) == 3
    path.write_text(json.dumps(row(), indent=2))
    assert len(run(path)[0]) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n {"image": "a.png",\n  oops}\n]', "line 3 column 3"),
        ('[{"image": "a.png"}', "line 1"),
        ('"text"', "expected a JSON array"),
        ("", "is empty"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_json_stops_with_the_place(tmp_path, content, message):
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        run(path)


def test_a_missing_file_or_image_folder_is_a_clear_error(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        run(tmp_path / "none.json")
    with pytest.raises(InputError, match="image folder"):
        ingest(tmp_path, [row()], images=tmp_path / "none")


def test_order_and_batch_size_change_neither_ids_nor_splits(tmp_path):
    names = sorted(path.name for path in (DATA / "images").iterdir())
    rows = [row(f"caption {i}", image=names[i % len(names)]) for i in range(40)]
    columns = ["sample_id", "image_sha", "reference", "split"]
    forward, _ = ingest(tmp_path, rows, train=0.5, dev=0.25)
    backward, _ = ingest(tmp_path, rows[::-1], train=0.5, dev=0.25, batch_rows=7)
    assert forward.select(columns).sort("sample_id").equals(backward.select(columns).sort("sample_id"))


def test_splits_have_their_shares():
    counts = Counter(split_of(f"{i:064x}", IngestSettings(train=0.7, dev=0.2)) for i in range(20_000))
    assert counts["train"] == pytest.approx(14_000, abs=300)
    assert counts["dev"] == pytest.approx(4_000, abs=250)


def test_shares_over_one_are_refused():
    with pytest.raises(ValueError, match="more than 1"):
        IngestSettings(train=0.9, dev=0.2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["image", "conversations", "from", "value", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(JSON, min_size=1, max_size=5))
def test_whatever_json_comes_every_row_is_accounted_for(tmp_path_factory, values):
    samples, rejects = ingest(tmp_path_factory.mktemp("any"), values)
    assert len(samples) + len(rejects) == len(values)


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1))
def test_any_valid_unicode_survives(tmp_path_factory, text):
    samples, rejects = ingest(tmp_path_factory.mktemp("unicode"), [row("x" + text + "x")], control_tokens=())
    assert samples["reference"].to_list() == ["x" + text + "x"]
    assert rejects.is_empty()
