"""How fast an account may ask: requests in flight, requests and tokens a minute, and what the endpoint's headers say.

All clients of a process share one limiter for each account and database, and all processes on that database share the
account's budget (core.expert.budget). A request waits for a slot first and for its place in time second, in the order
of arrival; only requests that are due within a moment hold a slot, so that nobody sits on one that another could use.

While a process needs no other's slots and no rate is set, a request costs a lock and an addition. Everything else is
done by one thread a limiter, which alone talks to the database, and which ends when there is nothing to do.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from sqlalchemy import Engine

from core.expert.budget import Budget, View
from core.expert.headers import wait_s
from core.expert.settings import ExpertSettings

_POLL_S = 0.25
_TICK_S = 0.25
"""How often a process looks whether others want some of its slots, and gives back those that it did not need."""
_RETRY_S = 0.05
"""How often it looks for slots that it lacks."""
_HORIZON_S = 0.25
"""Places are booked for the requests of so many seconds at a time."""
_KINDS = ("requests", "tokens")


class Limiter(Protocol):
    """Says when to send. Safe to use from many threads and event loops."""

    async def enter(self, tokens: int, stopped: Callable[[], bool]) -> bool:
        """Return when a request of so many tokens, prompt and longest reply, may be sent: True, and `leave` is due.

        False: `stopped` came first. Raises StoreError if the database of the budget cannot be reached.
        """
        ...

    def leave(self) -> None:
        """A request that entered has ended, well or not."""
        ...

    def hear(self, headers: Mapping[str, str]) -> None:
        """Take note of the headers of any answer, x-ratelimit-* among them."""
        ...

    def rest(self) -> None:
        """Give back what is not in use, at once. Blocking; for the end of some work."""
        ...


@dataclass(eq=False)
class _Waiter:
    """One that waits for its turn: `cost_s` seconds of the rate are its. `place`: Unix seconds, once it has one."""

    cost_s: float
    loop: asyncio.AbstractEventLoop
    turn: "asyncio.Future[None]" = field(init=False)
    place: float | None = None
    entered: bool = False

    def __post_init__(self) -> None:
        self.turn = self.loop.create_future()

    def wake(self, error: Exception | None = None) -> None:
        """Let it go on, or fail. From any thread."""

        def tell() -> None:
            if not self.turn.done():
                self.turn.set_result(None) if error is None else self.turn.set_exception(error)

        with suppress(RuntimeError):  # its event loop has ended, and it with that
            self.loop.call_soon_threadsafe(tell)


class SharedLimiter:
    """A limiter for the clients of one process, which shares `budget` with those of others.

    None: no limit. `most_s` bounds what a header can ask for. `clock`: Unix seconds, as the budget's.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        concurrency: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        most_s: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._budget = budget
        self._concurrency = concurrency
        self._seconds_a_request = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_a_token = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._most_s = most_s
        self._clock = clock
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._queue: deque[_Waiter] = deque()  # without a slot
        self._placed: deque[_Waiter] = deque()  # with a slot, which counts as used, and a place in time
        self._slots: set[int] = set()  # those of the account that are ours
        self._used = self._peak = 0
        self._most = concurrency  # as many as we may hold while others want some
        self._resumes = self._told = 0.0
        self._stirred = self._rests = self._wants = False
        self._beaten = self._looked = float("-inf")  # on time.monotonic
        self._needed = {"requests": 1, "tokens": 1}

    async def enter(self, tokens: int, stopped: Callable[[], bool]) -> bool:
        """See Limiter."""
        cost_s = max(self._seconds_a_request, tokens * self._seconds_a_token)
        with self._changed:
            self._needed["tokens"] = tokens
            if not (cost_s or self._queue or self._placed) and self._is_free() and self._resumes <= self._clock():
                self._use(1)
                return True
            waiter = _Waiter(cost_s, asyncio.get_running_loop())
            self._queue.append(waiter)
            self._run()
        try:
            while not waiter.turn.done() and not stopped():
                await asyncio.wait({waiter.turn}, timeout=_POLL_S)
            if waiter.turn.done():
                waiter.turn.result()
                return True
        except BaseException:
            self._withdraw(waiter)
            raise
        return self._withdraw(waiter)

    def leave(self) -> None:
        """See Limiter."""
        with self._changed:
            self._use(-1)
            if self._queue or self._used == 0 or len(self._slots) > self._most:
                self._run()

    def hear(self, headers: Mapping[str, str]) -> None:
        """See Limiter. An endpoint that says nothing, or nothing that can be read, changes nothing."""
        waits = [wait_s(headers, kind, self._needed[kind]) for kind in _KINDS]
        if (wait := min(max(waits), self._most_s)) > 0:
            with self._changed:
                self._resumes = max(self._resumes, self._clock() + wait)

    def rest(self) -> None:
        """See Limiter."""
        with self._changed:
            if not (self._slots or self._thread):
                return
            self._rests = True
            self._run()
            self._changed.wait_for(lambda: not self._rests, timeout=self._budget.beat_s)

    def _is_free(self) -> bool:
        return self._used < min(len(self._slots), self._most)

    def _use(self, more: int) -> None:
        self._used += more
        self._peak = max(self._peak, self._used)

    def _withdraw(self, waiter: _Waiter) -> bool:
        """Take a waiter out of the line. Always False."""
        with self._changed:
            if waiter in self._queue:
                self._queue.remove(waiter)
            elif waiter.entered or waiter in self._placed:
                if not waiter.entered:
                    self._placed.remove(waiter)
                self._use(-1)
            self._run()
        return False

    def _run(self) -> None:
        """Wake the thread; start it if there is none. The lock is held."""
        self._stirred = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="expert-limiter", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _serve(self) -> None:
        """The thread. It ends when nobody waits and nothing is held."""
        while True:
            self._stirred = False
            try:
                self._look()
                self._place()
            except Exception as error:  # whoever waits raises it
                self._fail(error)
            with self._changed:
                wait = self._let_in()
                if not (self._queue or self._placed or self._used or self._slots or self._wants):
                    self._thread, self._rests = None, False
                    self._changed.notify_all()
                    return
                if not self._stirred:
                    self._changed.wait(wait)

    def _look(self) -> None:
        """See what others hold and want, and take or give back slots accordingly."""
        now, rests = time.monotonic(), self._rests
        if not rests and now - self._looked < (_TICK_S if self._is_free() or not self._queue else _RETRY_S):
            return
        self._looked = now
        if (until := self._resumes) > self._told:
            self._budget.pause(until)
            self._told = until
        if now - self._beaten >= self._budget.beat_s:
            self._budget.beat()
            self._beaten = now
        view = self._budget.view()
        spare, missing = self._divide(view, rests)
        if spare:
            self._budget.give_back(spare)
        if free := [slot for slot in range(self._concurrency) if slot not in view.holders][:missing]:
            taken = self._budget.take(free)
            with self._changed:
                self._slots |= taken
        with self._changed:
            wants = self._used + len(self._queue) > len(self._slots)
            self._rests = self._rests and not rests
            self._changed.notify_all()
        if wants != self._wants:
            self._budget.want(wants)
            self._wants = wants

    def _divide(self, view: View, rests: bool) -> tuple[set[int], int]:
        """Slots to give back, which are ours no more, and how many to take."""
        with self._changed:
            ours = {slot for slot, owner in view.holders.items() if owner == self._budget.owner}
            self._most = view.share(self._budget.owner, self._concurrency)
            self._resumes = max(self._resumes, min(view.resumes, self._clock() + self._most_s))
            need = min(self._used + len(self._queue), self._most)
            keep = max(self._used, need, 0 if rests else min(self._peak, self._most))
            self._peak = self._used
            spare = set(sorted(ours)[keep:])
            self._slots = ours - spare
            return spare, max(0, need - len(ours))

    def _place(self) -> None:
        """Give those that are due within the horizon a slot and a place in time, as far as there are slots."""
        with self._changed:
            now = self._clock()
            ahead = max(0.0, (self._placed[-1].place or now) - now) if self._placed else 0.0
            lot: list[_Waiter] = []
            while self._queue and self._is_free() and (ahead <= _HORIZON_S / 2 or lot):
                if lot and ahead + self._queue[0].cost_s > _HORIZON_S:
                    break
                lot.append(self._queue.popleft())
                self._use(1)
                ahead += lot[-1].cost_s
            self._placed.extend(lot)
        costs = [waiter.cost_s for waiter in lot]
        places = self._budget.book(costs) if any(costs) else [now] * len(lot)
        with self._changed:
            for waiter, place in zip(lot, places, strict=True):
                waiter.place = place

    def _let_in(self) -> float:
        """Wake those whose turn has come; seconds until there is more to do. The lock is held."""
        now = self._clock()
        while self._placed and (wait := max(self._placed[0].place or now, self._resumes) - now) <= 0:
            waiter = self._placed.popleft()
            waiter.entered = True
            waiter.wake()
        wait = min(wait, _TICK_S) if self._placed else _TICK_S
        return min(wait, _RETRY_S) if self._queue and not self._is_free() else wait

    def _fail(self, error: Exception) -> None:
        with self._changed:
            for waiter in (*self._queue, *self._placed):
                waiter.wake(error)
            self._use(-len(self._placed))
            self._queue.clear()
            self._placed.clear()
            self._rests = False
            self._changed.notify_all()


def shared_limiter(settings: ExpertSettings, engine: Engine) -> Limiter:
    """The one of this process for the account that the settings describe and the database that it is shared on."""
    account = (settings.base_url, settings.model, settings.api_key_env)
    rates = (settings.requests_per_minute, settings.tokens_per_minute)
    return _limiter(engine, account, settings.concurrency, rates, settings.max_wait_s)


@lru_cache(maxsize=16)
def _limiter(
    engine: Engine, account: tuple[str, ...], concurrency: int, rates: tuple[float | None, float | None], most_s: float
) -> SharedLimiter:
    requests, tokens = rates
    return SharedLimiter(
        Budget(engine, account),
        concurrency=concurrency,
        requests_per_minute=requests,
        tokens_per_minute=tokens,
        most_s=most_s,
    )
