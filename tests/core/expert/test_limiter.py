"""How fast is asked: on a clock of our own, and over real HTTP."""

import asyncio
import http.server
import threading
import time
import uuid
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core.claims import open_database
from core.errors import BudgetExceeded
from core.expert.budget import Budget
from core.expert.client import ExpertClient
from core.expert.estimate import most_of
from core.expert.headers import seconds_of, wait_s
from core.expert.ledger import Ledger
from core.expert.limiter import SharedLimiter, shared_limiter
from tests.core.expert.asking import IMAGE, IMAGES, late_after, requests, settings

OK = b'{"choices": [{"message": {"content": "right"}, "finish_reason": "stop"}]}'


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ledger(tmp_path):
    return Ledger(open_database(f"sqlite:///{tmp_path / 'state.db'}"))


def limiter_of(engine, *, ttl_s: float = 10.0, clock=time.time, concurrency: int = 8, **rates) -> SharedLimiter:
    """As of a process of its own."""
    return SharedLimiter(Budget(engine, ("there",), ttl_s=ttl_s, clock=clock), concurrency=concurrency, **rates)


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return open_database(f"sqlite:///{tmp_path_factory.mktemp('limits') / 'state.db'}")


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 2), st.lists(st.floats(0.1, 2), min_size=1, max_size=5))))
@hypothesis_settings(max_examples=40, deadline=None)
def test_no_window_holds_more_than_the_rate_and_one_request(shared, arrivals):
    """Whoever books, and however many at once: of those that begin in a window all but the last end in it too."""
    clock = Clock()
    account = (str(uuid.uuid4()),)
    budgets = [Budget(shared, account, clock=clock) for _ in range(3)]
    sent = []
    for gap, who, costs in arrivals:
        clock.now += gap
        places = budgets[who].book(costs)
        assert all(place >= clock.now - 1e-6 for place in places)
        sent += zip(places, costs, strict=True)
    sent.sort()
    assert all(later - earlier >= cost - 1e-6 for (earlier, cost), (later, _) in pairwise(sent))


def test_places_are_booked_without_gaps_and_time_that_passes_is_not_saved_up(shared):
    clock = Clock()
    clock.now = 50.0
    budget = Budget(shared, ("gaps",), clock=clock)
    assert budget.book([1.0, 1.0, 2.0]) == [50.0, 51.0, 52.0]
    assert budget.book([1.0]) == [54.0]
    clock.now = 100.0
    assert budget.book([1.0, 1.0]) == [100.0, 101.0]


@pytest.mark.parametrize(
    ("text", "seconds"), [("6m0s", 360), ("20ms", 0.02), ("1h2m3.5s", 3723.5), ("2", 2), ("0s", 0), (" 7s ", 7)]
)
def test_durations_are_read_in_all_their_forms(text, seconds):
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1d", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="no duration"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("remaining", "limit", "reset", "seconds"),
    [
        ("0", None, "6s", 6.0),
        ("0", "60", "60s", 1.0),  # it fills up evenly: one of sixty is there after a second
        ("1", "60", "59s", 0.0),
        ("0", "60", "later", 0.0),
        ("many", "60", "6s", 0.0),
        (None, "60", "6s", 0.0),
    ],
)
def test_headers_say_when_the_next_request_is_welcome(remaining, limit, reset, seconds):
    values = {"remaining": remaining, "limit": limit, "reset": reset}
    headers = {f"x-ratelimit-{name}-requests": value for name, value in values.items() if value is not None}
    assert wait_s(headers, "requests", 1) == pytest.approx(seconds)


def test_clients_on_one_database_share_their_accounts_limiter(ledger):
    config = settings("http://127.0.0.1:9/v1", requests_per_minute=7)
    one = shared_limiter(config, ledger.engine)
    assert one is shared_limiter(config.model_copy(update={"timeout_s": 1}), ledger.engine)
    assert one is not shared_limiter(config.model_copy(update={"model": "other"}), ledger.engine)


@pytest.mark.parametrize("kind", ["requests", "tokens"])
def test_two_clients_together_ask_no_faster_than_they_may(start_expert, ledger, kind):
    expert = start_expert()
    config = settings(expert.url, concurrency=8)
    most = most_of(config, requests(config, 1)[0].body(IMAGE), IMAGE).tokens
    rate = {"requests_per_minute": 1200} if kind == "requests" else {"tokens_per_minute": 1200 * most}
    config = config.model_copy(update=rate)

    async def both() -> None:
        batch = requests(config, 24)
        clients = [ExpertClient(config, ledger=ledger) for _ in range(2)]
        await asyncio.gather(*(c.ask_async(batch[i::2], IMAGES.__getitem__) for i, c in enumerate(clients)))

    started = time.monotonic()
    asyncio.run(both())
    assert time.monotonic() - started >= 23 * 0.05
    assert expert.stats["requests"] == 24


def test_who_waits_for_a_place_does_not_hold_up_the_end(start_expert, ledger, monkeypatch):
    expert = start_expert()
    config = settings(expert.url, requests_per_minute=1, **late_after(monkeypatch, expert, 1))
    started = time.monotonic()
    with pytest.raises(BudgetExceeded):
        ExpertClient(config, ledger=ledger).ask(requests(config, 5), IMAGES.__getitem__)
    assert time.monotonic() - started < 40, "the next place is a minute away"
    assert expert.stats["requests"] == 1
    again = config.model_copy(update={"deadline_s": None, "requests_per_minute": None})
    assert len(ExpertClient(again, ledger=ledger).ask(requests(config, 5), IMAGES.__getitem__)) == 5


def test_a_slow_request_holds_up_no_other(start_expert, ledger):
    last_came = threading.Event()
    url, times, stop = serve_and_tell(
        {}, first_waits=lambda: last_came.wait(60), seen=lambda n: n == 40 and last_came.set()
    )
    try:
        config = settings(url, concurrency=4)
        ExpertClient(config, ledger=ledger).ask(requests(config, 40), IMAGES.__getitem__)
    finally:
        stop()
    assert last_came.is_set()
    assert len(times) == 40


def test_the_endpoints_headers_make_everybody_wait(ledger):
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "300ms"}
    url, times, stop = serve_and_tell(headers)
    try:
        config = settings(url, concurrency=1, max_wait_s=5)
        ExpertClient(config, ledger=ledger).ask(requests(config, 4), IMAGES.__getitem__)
    finally:
        stop()
    assert all(later - earlier >= 0.29 for earlier, later in pairwise(times)), times


def serve_and_tell(headers: dict[str, str], *, first_waits=lambda: None, seen=lambda count: None):
    """A server that answers right, with these headers, and the times at which it was asked.

    The first answer comes after `first_waits()`; `seen` is told how many requests have come.
    """
    times: list[float] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            times.append(time.monotonic())
            place = len(times)
            seen(place)
            if place == 1:
                first_waits()
            self.send_response(200)
            for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(OK))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(OK)

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return f"http://127.0.0.1:{server.server_address[1]}/v1", times, stop
