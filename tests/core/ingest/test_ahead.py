"""Reading ahead in another process changes nothing but the time it takes."""

import json
import multiprocessing

import pytest

from core.errors import InputError
from core.ingest import ahead
from core.ingest.formats import FORMATS


@pytest.fixture
def file(tmp_path):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A ring."}]
    rows = [{"image": f"{i}.png", "conversations": turns if i % 7 else [turns[0]]} for i in range(2500)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def plain(row):
    return (row.place, row.error.args) if hasattr(row, "error") else row


def test_the_rows_are_those_of_the_reader(file):
    assert list(map(plain, ahead.rows_ahead("llava", file))) == list(map(plain, FORMATS["llava"](file)))


def test_a_fault_of_the_file_arrives_after_the_rows_before_it(file):
    file.write_text(file.read_text()[:-5])
    found = []
    with pytest.raises(InputError, match="not valid JSON"):
        found.extend(ahead.rows_ahead("llava", file))
    assert len(found) == 2000, "whole batches"


def test_no_process_is_left_when_the_rest_is_not_wanted(file):
    rows = ahead.rows_ahead("llava", file)
    next(rows)
    assert multiprocessing.active_children()
    rows.close()
    assert not multiprocessing.active_children()


def test_small_files_need_no_second_process(file, monkeypatch):
    rows = ahead.read_rows("llava", file, threads=2)
    next(rows)
    assert not multiprocessing.active_children()
    monkeypatch.setattr(ahead, "_LARGE", 0)
    for threads, children in ((1, 0), (2, 1)):
        rows = ahead.read_rows("llava", file, threads=threads)
        next(rows)
        assert len(multiprocessing.active_children()) == children
        rows.close()
