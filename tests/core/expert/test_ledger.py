"""The ledger on SQLite: claims exclude each other, answers stay, failures are asked again by a later run."""

import time

import pytest
from sqlalchemy import event

from core.claims import open_database
from core.errors import StoreError
from core.expert.ledger import Ledger, Reply
from tests.clock import Clock

KEY = "a" * 64


def reply(status="answered", **changes):
    return Reply(**({"key": KEY, "status": status, "model": "m", "prompt_version": "p", "raw": "[]"} | changes))


@pytest.fixture
def ledger(tmp_path):
    return Ledger(open_database(f"sqlite:///{tmp_path / 'state.db'}"), ttl_s=30)


def test_a_reply_is_read_as_it_was_written(ledger):
    written = reply(prompt_tokens=7, completion_tokens=3, cost_usd=0.5, latency_s=0.1, attempts=2, finish_reason="stop")
    ledger.session().record([written])
    assert ledger.find([KEY, "b" * 64]) == {KEY: written}


def test_of_two_workers_one_sends(ledger):
    first, second = ledger.session(), ledger.session()
    assert first.claim([KEY])[KEY] is True
    assert second.claim([KEY])[KEY] is False
    first.record([reply()])
    assert second.claim([KEY])[KEY] == ledger.find([KEY])[KEY]


def test_a_claim_of_a_dead_worker_expires_and_a_heartbeat_keeps_it(ledger, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("core.claims.time", clock)
    monkeypatch.setattr("core.expert.ledger.time", clock)
    dead, living, heir = ledger.session(), ledger.session(), ledger.session()
    assert dead.claim([KEY])[KEY] is True
    assert living.claim(["b" * 64])["b" * 64] is True
    for _ in range(5):
        clock.now += 10  # of 30
        living.beat()
    assert heir.claim([KEY])[KEY] is True
    assert heir.claim(["b" * 64])["b" * 64] is False


def test_what_an_interrupted_worker_claimed_is_free_again(ledger):
    first, second = ledger.session(), ledger.session()
    first.claim([KEY])
    first.close()
    assert second.claim([KEY])[KEY] is True


def test_a_failure_is_final_for_those_who_waited_for_it_and_is_retried_by_a_later_run(ledger):
    first, waiting = ledger.session(), ledger.session()
    first.claim([KEY])
    first.record([reply("failed", error="length")])
    found = waiting.claim([KEY])[KEY]
    assert isinstance(found, Reply)
    assert found.error == "length"
    time.sleep(0.01)
    assert ledger.session().claim([KEY])[KEY] is True


def test_a_failure_never_replaces_an_answer(ledger):
    session = ledger.session()
    session.record([reply()])
    session.record([reply("failed", error="http_500")])
    assert ledger.find([KEY])[KEY].status == "answered"


def test_a_full_disk_is_a_clear_error(tmp_path):
    engine = open_database(f"sqlite:///{tmp_path / 'state.db'}")
    session = Ledger(engine).session()

    @event.listens_for(engine, "begin")
    def leave_no_room(connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    with pytest.raises(StoreError, match=r"ledger.*full"):
        session.record([reply(raw="x" * 100_000)])


def test_the_ledger_finds_more_keys_than_a_statement_has_variables(ledger):
    keys = [f"{i:064x}" for i in range(1000)]
    session = ledger.session()
    assert session.claim(keys) == dict.fromkeys(keys, True)
    session.record([reply(key=key) for key in keys[::2]])
    assert set(ledger.find(keys)) == set(keys[::2])
    other = ledger.session().claim(keys)
    assert [other[key] is False for key in keys] == [i % 2 == 1 for i in range(1000)]
