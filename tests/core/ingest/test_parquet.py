import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import InputError
from core.ingest.formats import detect
from core.ingest.parquet import rows
from core.ingest.rows import BadRow

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def table(tmp_path, columns, **options):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table(columns), path, **options)
    return path


def read(tmp_path, columns):
    return list(rows(table(tmp_path, columns)))


def test_images_are_paths_bytes_or_what_datasets_write(tmp_path):
    images = [{"bytes": b"one", "path": "a.jpg"}, {"bytes": b"two", "path": None}, {"bytes": None, "path": "c.jpg"}]
    columns = {"caption": ["A.", "B.", "C."], "question": ["x?", None, "z?"], "image": pa.array(images, STRUCT)}
    found = read(tmp_path, columns)
    assert [(row.place, row.image, row.image_bytes, row.prompt, row.reference) for row in found] == [
        ("data.parquet:0", "a.jpg", b"one", "x?", "A."),
        ("data.parquet:1", None, b"two", "", "B."),
        ("data.parquet:2", "c.jpg", None, "z?", "C."),
    ]
    assert [row.image_bytes for row in read(tmp_path, {"text": ["A."], "image": [b"one"]})] == [b"one"]
    assert [row.image for row in read(tmp_path, {"text": ["A."], "file_name": ["a.jpg"]})] == ["a.jpg"]
    assert [row.image for row in read(tmp_path, {"text": ["A.", "B."], "images": [["a.jpg"], []]})] == ["a.jpg", None]


def test_a_list_of_captions_is_a_row_for_each(tmp_path):
    found = read(tmp_path, {"captions": [["A.", "B."], None], "image": [b"one", b"two"]})
    assert [(row.reference, row.image_bytes) for row in found[:2]] == [("A.", b"one"), ("B.", b"one")]
    assert found[2].error.reason == "no_caption"


def test_conversations_messages_and_pairs_are_read_as_in_json(tmp_path):
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A ring."}]
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "A ring."}]}]
    pair = {
        "problem": ["What?"],
        "original_caption": ["A ring."],
        "changed_caption": ["A cube."],
        "solution_original": ["ring"],
        "solution_target": ["cube"],
    }
    for columns in ({"conversations": [turns]}, {"messages": [chat]}, pair):
        (row,) = read(tmp_path, {**columns, "image": pa.array([{"bytes": b"one", "path": None}], STRUCT)})
        assert (row.image, row.image_bytes, row.prompt, row.reference) == (None, b"one", "What?", "A ring.")
    assert row.pair.changed == "A cube."


def test_a_row_that_cannot_be_used_costs_no_other(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"]).buffers())
    found = read(tmp_path, {"text": broken, "image": ["a.jpg"] * 3})
    assert [row.error.reason if isinstance(row, BadRow) else row.reference for row in found] == [
        "a",
        "invalid_unicode",
        "c",
    ]
    found = read(tmp_path, {"text": [1, 2], "image": ["a.jpg"] * 2})
    assert [row.error.reason for row in found] == ["text_not_a_string"] * 2
    found = read(tmp_path, {"text": ["a"], "image": [7]})
    assert [row.error.reason for row in found] == ["bad_image_field"]
    found = read(tmp_path, {"text": ["a"], "image": [["a.jpg", "b.jpg"]]})
    assert [row.error.reason for row in found] == ["many_images"]


def test_columns_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(InputError, match="has the columns picture, words; needed is one of reference, caption"):
        read(tmp_path, {"picture": ["a"], "words": ["b"]})


@pytest.mark.parametrize("blob", [b"", b"PAR1", b"not parquet at all"])
def test_a_file_that_is_no_parquet_is_a_clear_error(tmp_path, blob):
    path = tmp_path / "data.parquet"
    path.write_bytes(blob)
    with pytest.raises(InputError, match=r"data\.parquet cannot be read as Parquet"):
        list(rows(path))
    with pytest.raises(InputError, match="cannot read"):
        list(rows(tmp_path / "none.parquet"))


def test_a_damaged_page_is_a_clear_error(tmp_path):
    path = table(tmp_path, {"text": [f"caption {i}" for i in range(5000)]}, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[200:4000] = b"\xff" * 3800
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"cannot be read as Parquet|cannot read"):
        list(rows(path))


def test_parquet_is_known_by_its_suffix_and_its_first_bytes(tmp_path):
    path = table(tmp_path, {"text": ["a"]})
    assert detect(path) == "parquet"
    assert detect(path.rename(tmp_path / "data")) == "parquet"


def test_a_column_that_is_not_used_is_not_read(tmp_path):
    columns = {
        "text": ["a"] * 2000,
        "blob": [bytes(10_000)] * 2000,
    }
    path = table(tmp_path, columns, compression="none", use_dictionary=False)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    for index, _ in enumerate(rows(path)):
        if index % 500 == 0:
            assert pa.total_allocated_bytes() - before < 5_000_000
            assert tracemalloc.get_traced_memory()[0] < 5_000_000
    tracemalloc.stop()
