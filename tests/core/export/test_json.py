import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InputError
from core.export.files import extension_of, writing_rows
from core.export.formats import EXPORTS, export, fitting
from core.export.vicrit import solutions
from core.ingest import llava, rediff, vicrit
from core.ingest.sources import FolderImages
from data_contracts import TABLES, Corrections, Drafts, HallucinationPairs, Revisions, Samples
from tests.core.export.datasets import Memory, encoded, ingested
from tests.core.ingest.test_rediff import asked, predicted, records, segment

PAIRS = Path(__file__).parents[2] / "data" / "vicrit" / "pairs.json"


def dump(path, rows):
    path.write_text(json.dumps(rows))
    return path


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def sample(index, sha, prompt="Describe.", reference="A red ring.", split="train"):
    return {
        "sample_id": f"s{index}",
        "image_sha": sha,
        "prompt": prompt,
        "reference": reference,
        "split": split,
        "source": f"data.json:{index}",
    }


def test_samples_become_conversations_with_their_images_beside_them(tmp_path, memory):
    data = encoded("a", "JPEG")
    sha = memory.put(data)
    memory.add(Samples, [sample(0, sha), sample(1, None)]).add(Samples, [sample(2, sha, reference="é 🎈")])
    assert export(memory, "llava", tmp_path / "out") == 3
    turns = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": "A red ring."}]
    rows = load(tmp_path / "out" / "llava.json")
    assert rows[0] == {"id": "s0", "image": f"images/{sha}.jpg", "conversations": turns}
    assert rows[1] == {"id": "s1", "conversations": [turns[0] | {"value": "Describe."}, turns[1]]}
    assert (tmp_path / "out" / "images" / f"{sha}.jpg").read_bytes() == data
    assert "é 🎈" in (tmp_path / "out" / "llava.json").read_text(encoding="utf-8")
    assert export(memory, "llava", tmp_path / "alone.jsonl") == 3
    assert [json.loads(line) for line in (tmp_path / "alone.jsonl").read_text().splitlines()] == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.jsonl", "out"]


def test_an_exported_folder_is_read_back_as_the_same_samples(tmp_path, memory):
    shas = [memory.put(encoded(name, kind)) for name, kind in (("a", "PNG"), ("b", "JPEG"), ("c", "WEBP"))]
    memory.add(Samples, [sample(i, sha, prompt=f"Question {i}?") for i, sha in enumerate(shas)])
    export(memory, "llava", tmp_path / "out")
    again = ingested(tmp_path / "out" / "llava.json", "llava", FolderImages(tmp_path / "out"))
    columns = ["image_sha", "prompt", "reference"]
    first, second = (source.parts["samples"] for source in (memory, again))
    assert first[0].select(columns).rows() == [row for frame in second for row in frame.select(columns).rows()]
    assert again.images == memory.images


TEXT = st.text(min_size=1, max_size=30).map(str.strip).filter(bool)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, st.booleans()), min_size=1, max_size=4), st.sampled_from(["json", "jsonl"]))
def test_any_text_comes_back_from_llava_as_it_was(tmp_path_factory, texts, suffix):
    memory = Memory()
    sha = memory.put(encoded("a"))
    memory.add(Samples, [sample(i, sha if shown else None, q, a) for i, (q, a, shown) in enumerate(texts)])
    path = tmp_path_factory.mktemp("llava") / f"data.{suffix}"
    export(memory, "llava", path)
    shown = [("<image>" in row.prompt, row.prompt, row.reference) for row in llava.rows(path)]
    assert [row[1:] for row in shown] == [(q.replace("<image>", "").strip(), a) for q, a, _ in texts]


def test_published_pairs_come_out_as_they_were_but_for_white_space(tmp_path):
    memory = ingested(PAIRS, "vicrit")
    assert export(memory, "vicrit", tmp_path / "out.json") == 60
    kinds = {"att": "attribute", "obj": "object", "rel": "relation"}
    for before, after in zip(load(PAIRS), load(tmp_path / "out.json"), strict=True):
        squeezed = {key: " ".join(value.split()) for key, value in before.items() if isinstance(value, str)}
        again = {key: " ".join(value.split()) for key, value in after.items()}
        assert again == squeezed | {"image": again["image"], "type": kinds[before["type"][-3:]]}
    first = ingested(tmp_path / "out.json", "vicrit").parts["hallucination_pairs"]
    columns = ["kind", "original_caption", "changed_caption", "solution_original", "solution_target", "start", "end"]
    for one, other in zip(first, memory.parts["hallucination_pairs"], strict=True):
        assert one.select(columns).equals(other.select(columns))


WORDS = st.lists(st.sampled_from(["a", "red", "ring", "é", "🎈"]), max_size=4)


@settings(max_examples=200, deadline=None)
@given(WORDS, WORDS, WORDS, WORDS)
def test_any_pair_that_is_written_is_read_as_the_same_captions(tmp_path_factory, left, before, after, right):
    original, changed = " ".join([*left, *before, *right]), " ".join([*left, *after, *right])
    if not original or not changed or original == changed:
        return
    start, end, target = vicrit.locate(original, changed, " ".join(before), " ".join(after))
    pair = {
        "pair_id": "p",
        "sample_id": "s0",
        "original_caption": original,
        "changed_caption": changed,
        "solution_original": original[start:end],
        "solution_target": target,
        "start": start,
        "end": end,
    }
    memory = Memory().add(Samples, [sample(0, None, reference=original)]).add(HallucinationPairs, [pair])
    path = tmp_path_factory.mktemp("vicrit") / "data.json"
    assert export(memory, "vicrit", path) == 1
    (row,) = vicrit.rows(path)
    assert (row.reference, row.pair.changed) == (original, changed)
    assert "type" not in load(path)[0]


def test_a_solution_against_nothing_is_written_without_its_space():
    assert solutions("", "tall ") == ("", "tall")
    assert solutions(" red", "") == ("red", "")
    assert solutions("red ", "blue ") == ("red ", "blue ")


def test_a_pair_without_its_sample_is_a_clear_error_and_leaves_no_file(tmp_path, memory):
    pair = {"pair_id": "p", "sample_id": "s9", "original_caption": "a", "changed_caption": "b"}
    spans = {"solution_original": "a", "solution_target": "b", "start": 0, "end": 1}
    memory.add(Samples, [sample(0, None)]).add(HallucinationPairs, [pair | spans])
    with pytest.raises(InputError, match="pair p has no sample s9"):
        export(memory, "vicrit", tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == []


def test_corrections_that_were_read_are_written_as_they_were(tmp_path):
    rows = [
        {"id": 0} | asked(revise=[segment("red", "green")]),
        predicted(revise="Right."),
        asked("Another red kite é 🎈."),
        asked("A third.", revise=[], note={"x": [1, 1.0, None, True, "\ud800"]}),
        predicted("A fourth.", ans=None, revise="right"),
    ]
    memory = ingested(dump(tmp_path / "data.json", rows), "rediff")
    assert export(memory, "rediff", tmp_path / "out") == 5
    written = load(tmp_path / "out" / "rediff.json")
    assert [list(row.items()) for row in written] == [list(row.items()) for row in rows]
    assert list(memory.images.values()) == [(tmp_path / "out" / "a" / "b.jpg").read_bytes()]


@settings(max_examples=200, deadline=None)
@given(st.lists(records(), min_size=1, max_size=4))
def test_ingest_then_export_gives_each_accepted_row_back(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rediff")
    memory = ingested(dump(folder / "data.json", rows), "rediff")
    rejected = [row for frame in memory.parts.get("rejects", []) for row in frame["row_id"]]
    kept = [row for index, row in enumerate(rows) if f"data.json:{index}" not in rejected]
    if kept:
        assert export(memory, "rediff", folder / "out.json") == len(kept)
        assert exact(load(folder / "out.json")) == exact(kept)


def exact(value):
    return json.dumps(value, sort_keys=True)


def own(index, verdict, segments, sha=None):
    part = {"char_start": 0, "char_end": 1, "token_start": 0, "token_end": 1}
    draft = {"draft_id": f"d{index}", "sample_id": f"s{index}", "image_sha": sha, "prompt": "What?", "reference": "A."}
    ids = {"prompt_ids": [1], "token_ids": [2], "char_start": [0], "char_end": [1], "writes": []}
    how = {"setting": "8", "tokens_per_step": 1, "extra_steps": 0, "policy": "p", "nfe": 1, "model_digest": "m"}
    revision = {
        "draft_id": f"d{index}",
        "sample_id": f"s{index}",
        "request_key": "0" * 64,
        "prompt_version": "1",
        "verdict": verdict,
        "segments": [{"org": o, "target": t, "reason": reason} | part for o, t, reason in segments],
    }
    return draft | ids | how | {"text": f"Draft {index}.", "round": 0}, revision


def test_own_drafts_are_written_with_the_segments_that_were_accepted(tmp_path, memory):
    sha = memory.put(encoded("a"))
    rows = [
        own(0, "revised", [("a", "b", None), ("c", "d", "not_found")], sha),
        own(1, "right", []),
        own(2, "unusable", [("c", "d", "not_found")]),
        own(3, "failed", []),
    ]
    drafts, revisions = zip(*rows, strict=True)
    memory.add(Drafts, [*drafts, own(4, "right", [])[0]]).add(Revisions, revisions[::-1])
    assert export(memory, "rediff", tmp_path / "out") == 2
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Draft 0."}]
    assert load(tmp_path / "out" / "rediff.json") == [
        {"id": "d0", "image": f"images/{sha}.png", "conversations": turns, "revise": [segment("a", "b")]},
        {"id": "d1", "conversations": [turns[0] | {"value": "What?"}, turns[1] | {"value": "Draft 1."}], "revise": []},
    ]
    again = list(rediff.rows(tmp_path / "out" / "rediff.json"))
    assert [row.correction.verdict for row in again] == ["revised", "right"]


def test_images_of_two_contents_under_one_name_are_not_mixed_up(tmp_path, memory):
    shas = [memory.put(encoded(name)) for name in "ab"]
    row = {"sample_id": "s", "image": "x.png", "question": "q", "draft": "d", "segments": [], "layout": "pred"}
    memory.add(Corrections, [row | {"correction_id": sha, "image_sha": sha} for sha in shas])
    with pytest.raises(InputError, match=r"x\.png is there already"):
        export(memory, "rediff", tmp_path / "out")
    assert export(memory, "rediff", tmp_path / "out.json") == 2


def test_an_image_path_does_not_lead_out_of_the_folder(tmp_path, memory):
    sha = memory.put(encoded("a"))
    row = {"sample_id": "s", "image": "../x.png", "question": "q", "draft": "d", "segments": [], "layout": "pred"}
    memory.add(Corrections, [row | {"correction_id": sha, "image_sha": sha}])
    with pytest.raises(InputError, match="leads out of"):
        export(memory, "rediff", tmp_path / "out")
    assert not (tmp_path / "x.png").exists()


def test_formats_that_fit_are_named_where_one_does_not(tmp_path, memory):
    memory.add(Samples, [sample(0, None)])
    with pytest.raises(
        InputError, match="vicrit is made from samples and hallucination_pairs; this dataset has samples"
    ):
        export(memory, "vicrit", tmp_path / "out.json")
    with pytest.raises(InputError, match="can be written as llava, parquet, hf"):
        export(memory, "rediff", tmp_path / "out.json")
    with pytest.raises(InputError, match="unknown format 'csv'; there are llava, vicrit"):
        export(memory, "csv", tmp_path / "out.json")
    assert set(fitting(TABLES)) == set(EXPORTS)
    assert fitting(["evaluations"]) == ["parquet"]


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path, memory):
    memory.add(Samples, [sample(0, None)])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*choose another place"):
        export(memory, "llava", tmp_path / "file" / "out.json")


def test_a_file_is_replaced_when_the_new_one_is_whole(tmp_path):
    path = tmp_path / "data.json"
    path.write_text("old")
    with pytest.raises(TypeError), writing_rows(path) as write_row:
        write_row({"a": object()})
    assert path.read_text() == "old"
    for name, empty in (("data.json", []), ("data.jsonl", None)):
        with writing_rows(tmp_path / name):
            pass
        text = (tmp_path / name).read_text()
        assert (json.loads(text) if text else None) == empty
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "data.jsonl"]


@pytest.mark.parametrize(
    ("kind", "extension"),
    [
        ("PNG", "png"),
        ("JPEG", "jpg"),
        ("GIF", "gif"),
        ("WEBP", "webp"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
        ("PPM", "ppm"),
    ],
)
def test_an_image_has_its_usual_extension(kind, extension):
    assert extension_of(encoded("a", kind)) == extension
