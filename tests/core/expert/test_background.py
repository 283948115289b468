"""What the asks of one process share, over real HTTP: a loop, connections and places in flight; and how they end."""

import asyncio
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from core.claims import open_database
from core.errors import Interrupted
from core.expert.account import Account
from core.expert.background import process_background
from core.expert.client import ExpertClient
from core.expert.ledger import Ledger
from core.interruption import interrupt, resume
from tests.core.expert.asking import IMAGES, requests, settings

_RIGHT = json.dumps({"choices": [{"message": {"content": '{"segments": []}'}, "finish_reason": "stop"}]}).encode()


class Gate:
    """A server whose answers the test decides: `answer(number, text)` -> status, of the number-th request's message.

    most: the most requests that it ever had at once; seen: their messages in order; clients: connections.
    """

    def __init__(self, answer: Callable[[int, str], int]) -> None:
        self.seen: list[str] = []
        self.clients: set[tuple[str, int]] = set()
        self.most = self._now = 0
        self._lock = threading.Lock()
        gate = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][1]["content"][0]["text"]
                with gate._lock:
                    gate.clients.add(self.client_address)
                    gate.seen.append(text)
                    number = len(gate.seen)
                    gate._now += 1
                    gate.most = max(gate.most, gate._now)
                status = answer(number, text)
                with gate._lock:
                    gate._now -= 1
                self.send_response(status)
                self.send_header("Retry-After", "0.2")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(_RIGHT)))
                self.end_headers()
                self.wfile.write(_RIGHT)

            def log_message(self, *_: object) -> None:
                return

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                return  # a client that was interrupted has gone

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def start_gate() -> Iterator[Callable[..., Gate]]:
    gates: list[Gate] = []

    def start(answer: Callable[[int, str], int] = lambda _number, _text: 200) -> Gate:
        gates.append(Gate(answer))
        return gates[-1]

    yield start
    for gate in gates:
        gate.server.shutdown()
        gate.server.server_close()


@pytest.fixture
def ledger(tmp_path):
    return Ledger(open_database(f"sqlite:///{tmp_path / 'state.db'}"))


def ask(config, ledger, batch, **options):
    return ExpertClient(config, ledger=ledger).ask(batch, IMAGES.__getitem__, **options)


def test_asks_at_once_share_their_places_in_flight_and_their_connections(start_gate, ledger):
    gate = start_gate()
    config = settings(gate.url, concurrency=3)
    batch = requests(config, 48, sha=None)
    with ThreadPoolExecutor(4) as threads:
        replies = list(threads.map(lambda shard: ask(config, ledger, batch[shard::4]), range(4)))
    assert all(reply.status == "answered" for shard in replies for reply in shard)
    assert len(gate.seen) == 48
    assert gate.most <= 3
    assert len(gate.clients) <= 3


def test_a_shard_that_waits_for_its_last_reply_leaves_the_other_places_to_the_next(start_gate, ledger):
    last, slow = threading.Event(), threading.Event()

    def answer(_number: int, text: str) -> int:
        if "item 0 " in text:
            slow.set()
            assert last.wait(30)
        return 200

    config = settings(start_gate(answer).url, concurrency=2, timeout_s=30)
    batch = requests(config, 10, sha=None)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(ask, config, ledger, batch[:1])
        assert slow.wait(10)
        assert all(reply.status == "answered" for reply in ask(config, ledger, batch[1:]))
        assert not first.done()
        last.set()
        assert first.result(10)[0].status == "answered"


def test_a_request_that_waits_to_be_tried_again_leaves_its_place_to_others(start_gate, ledger):
    gate = start_gate(lambda number, _text: 429 if number == 1 else 200)
    config = settings(gate.url, concurrency=1, max_wait_s=5)
    replies = ask(config, ledger, requests(config, 2, sha=None))
    assert [reply.attempts for reply in replies] == [2, 1]
    assert ["item 0" in text for text in gate.seen] == [True, False, True]


def test_progress_is_told_in_the_callers_thread_and_in_order(start_gate, ledger):
    threads, done = set(), []
    config = settings(start_gate().url)

    def note(progress) -> None:
        threads.add(threading.get_ident())
        done.append(progress.done)

    ask(config, ledger, requests(config, 20, sha=None), on_progress=note)
    assert threads == {threading.get_ident()}
    assert done == list(range(21))


def test_what_the_callers_function_raises_ends_the_run_and_what_was_sent_is_kept(start_gate, ledger):
    gate = start_gate()
    config = settings(gate.url, concurrency=2)
    batch = requests(config, 2000, sha=None)

    def refuse(progress) -> None:
        if progress.done:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        ask(config, ledger, batch, on_progress=refuse)
    assert 0 < len(gate.seen) < 2000
    assert len(ledger.find([request.key for request in batch])) == len(gate.seen)


def test_an_interruption_keeps_what_was_answered_and_leaves_no_claim(start_gate, ledger):
    hold = threading.Event()
    gate = start_gate(lambda number, _text: 200 if number <= 5 or hold.wait(30) else 500)
    config = settings(gate.url, concurrency=2, timeout_s=30)
    batch = requests(config, 20, sha=None)

    def interrupt(progress) -> None:
        if progress.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(config, ledger, batch, on_progress=interrupt)
    hold.set()
    found = ledger.find([request.key for request in batch])
    assert [reply.status for reply in found.values()] == ["answered"] * 5
    assert all(
        claim is True for key, claim in ledger.session().claim(list({r.key for r in batch} - set(found))).items()
    )


def test_an_interruption_counts_what_was_sent_and_nothing_else(start_gate, ledger):
    hold, both = threading.Event(), threading.Event()

    def answer(number: int, _text: str) -> int:
        if number == 7:
            both.set()
        return 200 if number <= 5 or hold.wait(30) else 500

    config = settings(start_gate(answer).url, concurrency=2, timeout_s=30, max_requests=100)

    def interrupt(progress) -> None:
        if progress.done == 5:
            assert both.wait(10)
            raise KeyboardInterrupt

    client = ExpertClient(config, ledger=ledger, run="monday")
    with pytest.raises(KeyboardInterrupt):
        client.ask(requests(config, 20, sha=None), IMAGES.__getitem__, on_progress=interrupt)
    hold.set()
    assert Account(ledger.session(), config, run="monday").spent().requests == 7


async def test_cancelling_a_task_that_asks_keeps_what_was_answered(start_gate, ledger):
    hold, answered = threading.Event(), asyncio.Event()
    gate = start_gate(lambda number, _text: 200 if number <= 5 or hold.wait(30) else 500)
    config = settings(gate.url, concurrency=2, timeout_s=30)
    batch = requests(config, 20, sha=None)

    def note(progress) -> None:
        if progress.done == 5:
            answered.set()

    asking = asyncio.create_task(
        ExpertClient(config, ledger=ledger).ask_async(batch, IMAGES.__getitem__, on_progress=note)
    )
    await asyncio.wait_for(answered.wait(), 10)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    hold.set()
    assert len(ledger.find([request.key for request in batch])) == 5


def test_connections_stay_open_from_one_ask_to_the_next(start_gate, ledger):
    gate = start_gate()
    config = settings(gate.url, concurrency=1)
    batch = requests(config, 6, sha=None)
    for start in range(0, 6, 2):
        ask(config, ledger, batch[start : start + 2])
    assert len(gate.clients) == 1


def test_no_more_endpoints_stay_open_than_a_few(start_gate, ledger):
    for _ in range(7):
        config = settings(start_gate().url)
        ask(config, ledger, requests(config, 1, sha=None))
    assert len(process_background()._transports) <= 4


_FORKS = """
import os, sys
from core.claims import open_database
from core.expert.client import ExpertClient
from core.expert.ledger import Ledger
from tests.core.expert.asking import requests, settings

config, database = settings(sys.argv[1]), sys.argv[2]

def ask(start):
    batch = requests(config, start + 3, sha=None)[start:]
    replies = ExpertClient(config, ledger=Ledger(open_database(database))).ask(batch, {}.__getitem__)
    assert all(reply.status == "answered" for reply in replies)

ask(0)
child = os.fork()
if not child:
    ask(3)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
ask(6)
print("well")
"""


def test_a_forked_process_asks_on_its_own_and_a_process_ends_by_itself(start_gate, tmp_path):
    gate = start_gate()
    command = [sys.executable, "-X", "dev", "-c", _FORKS, gate.url, f"sqlite:///{tmp_path / 'state.db'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
    assert "nclosed" not in done.stderr
    assert len(gate.seen) == 9


def test_an_interruption_ends_the_asks_of_all_threads_and_lets_none_begin(start_gate, ledger):
    hold, both = threading.Event(), threading.Event()

    def answer(number: int, _text: str) -> int:
        if number == 4:
            both.set()
        hold.wait(30)
        return 200

    gate = start_gate(answer)
    config = settings(gate.url, concurrency=4, timeout_s=30)
    batch = requests(config, 40, sha=None)
    with ThreadPoolExecutor(2) as threads:
        asks = [threads.submit(ask, config, ledger, batch[part::2]) for part in (0, 1)]
        assert both.wait(10)
        try:
            interrupt()
            hold.set()
            for one in asks:
                with pytest.raises(Interrupted, match="kept and not paid again"):
                    one.result(20)
            with pytest.raises(Interrupted):
                ask(config, ledger, batch)
        finally:
            resume()
    kept = ledger.find([request.key for request in batch])
    assert len(kept) == len(gate.seen) == 4
    assert all(reply.status == "answered" for reply in ask(config, ledger, batch))
    assert len(gate.seen) == 40
