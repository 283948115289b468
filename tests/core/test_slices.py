from pathlib import Path

import pytest
from sqlalchemy import Engine

from core.claims import open_database
from core.slices import shorten_slice, take_slice


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(f"sqlite:///{tmp_path / 'state.db'}")


def take(engine: Engine, run: str, source: str = "scenes:0") -> tuple[int, int] | None:
    return take_slice(engine, source=source, run=run, first=100, count=48, limit=188)


def test_each_run_takes_the_next_samples_until_none_are_left(engine):
    assert [take(engine, run) for run in ("one", "two", "three")] == [(100, 148), (148, 188), None]
    assert take(engine, "one", source="scenes:1") == (100, 148)


def test_a_run_that_asks_again_gets_the_slice_that_it_has(engine):
    first = take(engine, "one")
    take(engine, "two")
    assert take(engine, "one") == first


def test_samples_that_a_run_gives_back_go_to_the_next_run(engine):
    take(engine, "one")
    assert take(engine, "two") == (148, 188)
    shorten_slice(engine, source="scenes:0", run="two", end=172)
    assert take(engine, "two") == (148, 172)
    assert take(engine, "three") == (172, 188)
    shorten_slice(engine, source="scenes:0", run="three", end=200)
    assert take(engine, "four") is None, "a slice never grows"
