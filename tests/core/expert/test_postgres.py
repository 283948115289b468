"""A ledger that several machines share: two worker processes on one PostgreSQL server."""

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from core.claims import Claims, open_database
from core.expert.client import ExpertClient
from core.expert.ledger import Ledger
from tests.clock import Clock
from tests.core.expert.asking import requests, settings
from tests.core.expert.recording import recording_expert
from tests.core.expert.revising import no_image, start_worker

pytest.importorskip("psycopg2")
pytestmark = pytest.mark.skipif(shutil.which("initdb") is None, reason="no PostgreSQL server is installed")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of a server of our own, without a database's name. PostgreSQL refuses to run as root."""
    user = "nobody" if os.geteuid() == 0 else None
    with socket.socket() as free, tempfile.TemporaryDirectory(prefix="redraft-pg-") as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        if user:
            shutil.chown(folder, user)
        data = f"{folder}/data"
        quiet = {"stdout": subprocess.DEVNULL, "cwd": folder, "user": user}
        subprocess.run(["initdb", "-D", data, "-U", "redraft", "-A", "trust", "--no-sync"], check=True, **quiet)
        options = ["-D", data, "-k", folder, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        running = subprocess.Popen(["postgres", *options], stderr=subprocess.DEVNULL, **quiet)
        try:
            yield f"postgresql://redraft@127.0.0.1:{port}"
        finally:
            running.send_signal(signal.SIGINT)  # without waiting for connections
            running.wait(30)


@pytest.fixture
def database(server) -> str:
    """Address of an empty database."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    for _ in range(200):  # while it starts
        try:
            with engine.connect() as connection:
                connection.execute(text(f"CREATE DATABASE {name}"))
            return f"{server}/{name}"
        except OperationalError:
            time.sleep(0.1)
    raise AssertionError("the server does not start")


def two_workers(database, tmp_path, config, n):
    """Both at the same drafts; their exit codes."""
    begin = multiprocessing.get_context("forkserver").Barrier(2)
    work = {"settings": config, "database": database, "ttl_s": 5.0, "run": "tuesday", "n": n, "begin": begin}
    names = ("first", "second")
    workers = [start_worker(**work, name=name, out=tmp_path / f"{name}.parquet") for name in names]
    for worker in workers:
        worker.join()
    return [worker.exitcode for worker in workers]


def test_two_workers_never_send_the_same_request_and_both_get_all_replies(database, tmp_path):
    with recording_expert(latency_s=0.03) as (url, record):
        assert two_workers(database, tmp_path, settings(url, concurrency=8, reask=False), 300) == [0, 0]
    assert len(record.asked) == len({one.digest for one in record.asked}) == 300
    assert min(record.count("first"), record.count("second")) > 30, "both worked"
    first, second = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("first", "second"))
    assert_frame_equal(first, second)
    assert first.height == 300
    assert record.most <= 8


def test_no_worker_passes_a_limit_that_both_share(database, tmp_path):
    with recording_expert(latency_s=0.03) as (url, record):
        assert all(two_workers(database, tmp_path, settings(url, concurrency=8, max_requests=40, reask=False), 120))
        assert len(record.asked) == 40


def test_two_workers_together_ask_no_faster_than_they_may(database, tmp_path):
    with recording_expert() as (url, record):
        assert two_workers(database, tmp_path, settings(url, requests_per_minute=60 * 40, reask=False), 200) == [0, 0]
    times = sorted(one.at for one in record.asked)
    assert len(times) == 200
    assert all(at - times[0] >= 0.9 * number / 40 - 1.5 for number, at in enumerate(times)), "a moment ahead"


def test_of_many_that_want_a_claim_one_gets_it_and_an_expired_one_is_free(database, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("core.claims.time", clock)
    engine = open_database(database)
    claims = [Claims(engine, ttl_s=0.5) for _ in range(6)]
    taken: list[set[str]] = [set()] * len(claims)
    keys = [f"key-{i}" for i in range(40)]

    def take(number: int) -> None:
        taken[number] = claims[number].take_all(keys if number % 2 else keys[::-1])

    threads = [threading.Thread(target=take, args=(number,)) for number in range(len(claims))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key for those in taken for key in those) == sorted(keys)
    clock.now += 0.6
    assert claims[3].take_all(keys) == set(keys)
    assert set(claims[3].holders("key-").values()) == {claims[3].owner}


def test_a_reply_that_this_database_cannot_hold_fails_its_request_alone(database):
    """PostgreSQL's text holds no NUL."""
    with recording_expert(lambda draft: '{"segments": []}\x00' if "item 1 " in draft else None) as (url, _):
        config = settings(url, concurrency=2)
        client = ExpertClient(config, ledger=Ledger(open_database(database)), run="tuesday")
        replies = client.ask(requests(config, 3, sha=None), no_image)
    assert [reply.status for reply in replies] == ["answered"] * 3
