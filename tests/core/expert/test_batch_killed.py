"""A client in batch mode is killed at the moments that matter: the next one sends nothing twice and loses nothing."""

import multiprocessing
import signal

import pytest

from core.claims import open_database
from core.expert.account import Account
from core.expert.batch_server import Batches
from core.expert.ledger import Ledger
from tests.core.expert.batching import N, ask, settings

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.core.expert.batching"])


@pytest.mark.parametrize("moment", ["new_file", "create", "batch", "content", "delete"])
def test_a_kill_loses_nothing_and_sends_nothing_twice(start_expert, tmp_path, monkeypatch, moment):
    """Killed while the endpoint gets the file, has created the batch, shows it, sends the output, drops the input."""
    expert, database = start_expert(), f"sqlite:///{tmp_path / 'state.db'}"
    victim = _PROCESSES.Process(target=ask, args=(database, expert.url))
    original = getattr(Batches, moment)

    def kill(batches, *args):
        value = original(batches, *args)
        victim.kill()  # it does not see the answer
        return value

    with monkeypatch.context() as patch:
        patch.setattr(Batches, moment, kill)
        victim.start()
        victim.join(60)
    assert victim.exitcode == -signal.SIGKILL
    monkeypatch.setattr("core.expert.batch_flights._APPEARS_S", 0.2)
    replies = ask(database, expert.url)
    assert all((reply.status, reply.attempts) == ("answered", 1) for reply in replies)
    stats = expert.stats
    assert (stats["requests"], stats["answered"], stats["batches"]) == (N, N, 1)
    session = Ledger(open_database(database)).session()
    spent = Account(session, settings(expert.url, max_requests=N), run="tuesday").spent()
    assert (spent.requests, spent.tokens) == (N, sum(r.prompt_tokens + r.completion_tokens for r in replies))
