"""One budget for all that share a database: slots in flight among limiters as of different processes, and real ones."""

import asyncio
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core.claims import open_database
from core.errors import StoreError
from core.expert.budget import Budget
from core.expert.limiter import SharedLimiter
from tests.clock import eventually
from tests.core.expert.asking import settings
from tests.core.expert.recording import recording_expert
from tests.core.expert.revising import account_of, start_worker


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return open_database(f"sqlite:///{tmp_path_factory.mktemp('budget') / 'state.db'}")


def limiter_of(engine, account: str, *, concurrency: int = 4, ttl_s: float = 5.0, **rates) -> SharedLimiter:
    """As of a process of its own."""
    return SharedLimiter(Budget(engine, (account,), ttl_s=ttl_s), concurrency=concurrency, **rates)


@dataclass
class Flight:
    """How many requests are open, of whom, and how many there were at most."""

    open: int = 0
    most: int = 0
    done: dict[str, int] = field(default_factory=dict)

    async def request(self, limiter: SharedLimiter, name: str, seconds: float) -> None:
        assert await limiter.enter(1, never)
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(seconds)
        self.open -= 1
        self.done[name] = self.done.get(name, 0) + 1
        limiter.leave()

    async def until(self, limiter: SharedLimiter, name: str, workers: int, end: asyncio.Event) -> None:
        async def work() -> None:
            while not end.is_set():
                await self.request(limiter, name, 0.02)

        await asyncio.gather(*(work() for _ in range(workers)))


def never() -> bool:
    return False


@given(st.lists(st.lists(st.floats(0, 0.03), max_size=12), min_size=1, max_size=3))
@hypothesis_settings(max_examples=12, deadline=None)
def test_no_more_are_in_flight_than_there_are_slots_whoever_sends(shared, sessions):
    flight = Flight()
    limiters = [limiter_of(shared, "any", concurrency=3) for _ in sessions]

    async def all_of_them() -> None:
        await asyncio.gather(
            *(flight.request(limiter, "", s) for limiter, those in zip(limiters, sessions, strict=True) for s in those)
        )

    asyncio.run(all_of_them())
    for limiter in limiters:
        limiter.rest()
    assert flight.done.get("", 0) == sum(map(len, sessions))
    assert flight.most <= 3


def test_who_comes_later_gets_an_equal_share_and_all_when_the_first_is_gone(shared):
    flight, first, second = Flight(), limiter_of(shared, "fair"), limiter_of(shared, "fair")

    async def both() -> None:
        ends = asyncio.Event(), asyncio.Event()
        one = asyncio.create_task(flight.until(first, "first", 8, ends[0]))
        await came(lambda: flight.done.get("first", 0) > 20)
        two = asyncio.create_task(flight.until(second, "second", 8, ends[1]))
        await came(lambda: flight.done.get("second", 0) > 5)
        before = dict(flight.done)
        await came(lambda: flight.done["second"] >= before["second"] + 60)
        assert 30 <= flight.done["first"] - before["first"] <= 120
        ends[0].set()
        await one
        await came(lambda: len(second._slots) == 4)
        ends[1].set()
        await two

    asyncio.run(both())
    assert flight.most == 4


def test_slots_that_are_not_used_are_given_back(shared):
    flight, first, second = Flight(), limiter_of(shared, "idle"), limiter_of(shared, "idle")

    async def both() -> None:
        end = asyncio.Event()
        await asyncio.gather(*(flight.request(first, "first", 0.05) for _ in range(4)))
        one = asyncio.create_task(flight.until(first, "first", 1, end))
        await asyncio.wait_for(asyncio.gather(*(flight.request(second, "second", 1.0) for _ in range(3))), 60)
        end.set()
        await one

    asyncio.run(both())
    assert flight.most == 4


def test_waiting_costs_nothing_when_it_is_given_up(shared):
    limiter = limiter_of(shared, "given up", requests_per_minute=60)

    async def give_up() -> None:
        waiting = [asyncio.create_task(limiter.enter(1, never)) for _ in range(20)]
        await came(lambda: any(task.done() for task in waiting))
        for task in waiting:
            task.cancel()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        for entered in ended:
            if entered is True:
                limiter.leave()
        assert not await limiter.enter(1, lambda: True)

    asyncio.run(give_up())
    assert limiter._used == 0
    limiter.rest()
    assert Budget(shared, ("given up",)).view().holders == {}


def test_a_pause_that_the_endpoint_asks_one_process_for_holds_for_all_and_is_bounded(shared):
    first, second = (limiter_of(shared, "pause", most_s=3.0) for _ in range(2))

    async def both() -> None:
        assert await first.enter(500, never)
        assert await second.enter(1, never)
        second.leave()
        first.hear({"x-ratelimit-remaining-tokens": "499", "x-ratelimit-reset-tokens": "1h"})
        heard = time.monotonic()
        await came(lambda: second._resumes > time.time())
        assert await second.enter(1, never)
        assert time.monotonic() - heard >= 3.0
        second.leave()
        first.leave()

    asyncio.run(both())


def test_a_database_that_is_gone_is_an_error_of_those_who_wait(shared):
    limiter = limiter_of(shared, "gone")
    limiter._budget.view = lambda: (_ for _ in ()).throw(StoreError("the disk is gone"))
    with pytest.raises(StoreError, match="gone"):
        asyncio.run(limiter.enter(1, never))


def test_two_processes_together_keep_to_slots_and_rate_and_one_that_is_killed_frees_its_own(tmp_path):
    with recording_expert(latency_s=0.1) as (url, record):
        config = settings(url, concurrency=4, requests_per_minute=60 * 30, reask=False)
        work = {"settings": config, "database": f"sqlite:///{tmp_path / 'state.db'}", "ttl_s": 1.0, "run": "tuesday"}
        killed = start_worker(**work, n=900, name="killed", out=tmp_path / "none")
        lasting = start_worker(**work, n=900, name="lasting", out=tmp_path / "none")
        for name, n in (("killed", 5), ("lasting", 5)):
            record.wait_for(name, n, unless=lambda: not (killed.is_alive() and lasting.is_alive()))
        killed.kill()
        budget = Budget(open_database(work["database"]), account_of(config), ttl_s=1.0)
        eventually(lambda: len(owners := budget.view().holders.values()) == 4 and len(set(owners)) == 1)
        alone = record.count("lasting")
        record.wait_for("lasting", alone + 20, unless=lambda: not lasting.is_alive())
        assert lasting.is_alive(), "all slots were its own while it worked"
        lasting.kill()
        for process in (killed, lasting):
            process.join()
    asked = [one.at for one in record.asked]
    assert record.most == 4
    assert len({one.digest for one in record.asked}) == len(asked), "claims hold while their owners live"
    assert all(sum(start <= other < start + 1 for other in asked) <= 31 + 4 for start in asked)


async def came(true) -> None:
    """Return when it is true."""
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def test_who_may_have_fewer_in_flight_is_not_locked_out_by_who_may_have_more(shared):
    async def scenario() -> None:
        flight, end = Flight(), asyncio.Event()
        large, small = (limiter_of(shared, "sizes", concurrency=most) for most in (8, 2))
        busy = asyncio.create_task(flight.until(large, "large", 16, end))
        await asyncio.sleep(0.3)
        await asyncio.wait_for(flight.request(small, "small", 0.01), 60)
        end.set()
        await busy

    asyncio.run(scenario())
