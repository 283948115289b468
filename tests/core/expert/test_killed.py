"""Kill -9 in the middle of a revision, again and again: nothing is lost, and next to nothing is paid twice."""

import signal
import time
from collections import Counter
from itertools import count

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from core.claims import open_database
from core.expert.ledger import Ledger
from core.revising import request_for
from tests.core.expert.asking import settings
from tests.core.expert.recording import digest_of, recording_expert
from tests.core.expert.revising import start_worker, text_drafts

CONCURRENCY, LATENCY_S = 16, 0.03


@pytest.mark.parametrize(("kills", "n"), [(5, 150), pytest.param(20, 500, marks=pytest.mark.slow)])
def test_a_revision_that_is_killed_again_and_again_loses_no_reply_and_pays_for_few_twice(kills, n, tmp_path):
    random = np.random.default_rng(kills)
    with recording_expert(latency_s=LATENCY_S) as (url, record):
        config = settings(url, concurrency=CONCURRENCY, reask=False)
        work = {"settings": config, "n": n, "ttl_s": 0.5, "run": "tuesday"}
        here = {**work, "database": f"sqlite:///{tmp_path / 'state.db'}", "out": tmp_path / "revisions.parquet"}
        digests = {request.key: digest_of(request.body(None)) for request in requests_of(config, n)}
        kept: list[set[str]] = []  # what the ledger holds as each process begins
        for start in count():
            kept.append(answered(here["database"], digests))
            process = start_worker(**here, name=f"worker-{start}")
            if start < kills:
                record.wait_for(
                    f"worker-{start}", random.integers(0, n // kills), unless=lambda p=process: not p.is_alive()
                )
                time.sleep(random.uniform(0, LATENCY_S))  # into waiting, answering, writing, claiming
                process.kill()
            process.join()
            if process.exitcode != -signal.SIGKILL:
                break
        alone = {**work, "database": f"sqlite:///{tmp_path / 'alone.db'}", "out": tmp_path / "alone.parquet"}
        process = start_worker(**alone, name="alone")
        process.join()
        assert (start, process.exitcode) == (kills, 0)
    sent = [[one.digest for one in record.asked if one.worker == f"worker-{at}"] for at in range(kills + 1)]
    in_flight = [set(those) - kept[at + 1] for at, those in enumerate(sent[:kills])]
    assert max(map(len, in_flight)) <= CONCURRENCY
    assert sum(map(len, in_flight)) > 0, "the kills hit requests in flight"
    assert [set(those) & kept[at] for at, those in enumerate(sent)] == [set()] * (kills + 1), "replies were lost"
    twice = Counter(digest for those in sent for digest in those).total() - n
    assert twice <= sum(map(len, in_flight))
    assert answered(here["database"], digests) == set(digests.values())
    assert_frame_equal(revisions(here["out"]), revisions(alone["out"]))


def requests_of(config, n):
    return [request_for(row, config) for row in text_drafts(n).iter_rows(named=True)]


def answered(database: str, digests: dict[str, str]) -> set[str]:
    found = Ledger(open_database(database)).find(list(digests))
    return {digests[key] for key, reply in found.items() if reply.status == "answered"}


def revisions(path) -> pl.DataFrame:
    frame = pl.read_parquet(path).drop("latency_s")
    assert set(frame["verdict"]) == {"right", "revised", "unusable"}
    return frame
