"""How fast an account may ask: requests in flight, requests and tokens a minute, and what the endpoint's headers say.

All clients of a process share one limiter for each account and database, and all processes on that database share the
account's budget (core.expert.budget). A request waits for a slot first and for its place in time second, in the order
of arrival; only requests that are due within a moment hold a slot, so that nobody sits on one that another could use.

While a process needs no other's slots and no rate is set, a request costs a lock and an addition. Everything else is
done by one thread a limiter, which alone talks to the database, and which ends when there is nothing to do.
"""

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import accumulate, islice
from typing import Protocol

from sqlalchemy import Engine

from core.expert.budget import Budget, View
from core.expert.headers import wait_s
from core.expert.settings import ExpertSettings
from core.expert.waiting import Waiter
from core.once import one_of_each

_POLL_S = 0.25
_TICK_S = 0.25
"""How often a process looks whether others want some of its slots, and gives back those that it did not need."""
_RETRY_S = 0.05
"""How often it looks for slots that it lacks."""
_HORIZON_S = 0.25
"""Places are booked for the requests of so many seconds at a time."""
_AHEAD_S = 0.05
"""Who sends many requests in so many seconds books that much more than is waited for, to book seldom."""
_DUST_S = 1e-6
"""What sums of seconds since 1970 may be off by."""
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
        self._queue: deque[Waiter] = deque()  # without a slot
        self._slots: set[int] = set()  # those of the account that are ours
        self._used = self._peak = 0
        self._most = concurrency  # as many as we may hold while others want some
        self._next = self._end = 0.0  # the span of the account's time that is ours to spend, on the clock
        self._spent_s = self._booked = 0.0  # of the last span, and when it was booked
        self._resumes = self._told = 0.0
        self._stirred = self._rests = self._wants = False
        self._beaten = self._looked = float("-inf")  # on time.monotonic
        self._needed = {"requests": 1, "tokens": 1}

    async def enter(self, tokens: int, stopped: Callable[[], bool]) -> bool:
        """See Limiter."""
        cost_s = max(self._seconds_a_request, tokens * self._seconds_a_token)
        with self._changed:
            self._needed["tokens"] = tokens
            if not (cost_s or self._queue) and self._is_free() and self._resumes <= self._clock():
                self._use(1)
                return True
            waiter = Waiter(cost_s, asyncio.get_running_loop())
            self._queue.append(waiter)
            self._spend(waiter)
            if len(self._queue) == 1:  # else the thread is at it, or looks in time
                self._run()
        try:
            if await self._turn(waiter, stopped):
                return True
        except BaseException:
            self._withdraw(waiter)
            raise
        self._withdraw(waiter)
        return False

    async def _turn(self, waiter: Waiter, stopped: Callable[[], bool]) -> bool:
        """Wait for a slot, then for the place in time and the end of any pause; False if `stopped` came first."""
        while waiter.place is None:
            if stopped():
                return False
            await asyncio.wait({waiter.turn}, timeout=_POLL_S)
            if waiter.turn.done():
                waiter.turn.result()
        while (wait := max(waiter.place, self._resumes) - self._clock()) > 0:
            if stopped():
                return False
            await asyncio.sleep(min(wait, _POLL_S))
        return True

    def leave(self) -> None:
        """See Limiter."""
        with self._changed:
            was_full = not self._is_free()
            self._use(-1)
            if self._queue and was_full and self._spend():
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
            if self._slots or self._thread:
                self._rests = True
                self._run()
                self._changed.wait_for(lambda: not self._rests, timeout=self._budget.beat_s)

    def _is_free(self) -> bool:
        return self._used < min(len(self._slots), self._most)

    def _lacks(self) -> bool:
        """Whether another slot would help, and we may have it."""
        return bool(self._queue) and not self._is_free() and len(self._slots) < self._most

    def _use(self, more: int) -> None:
        self._used += more
        self._peak = max(self._peak, self._used)

    def _withdraw(self, waiter: Waiter) -> None:
        """Take a waiter out of the line, or its slot back."""
        with self._changed:
            if waiter.place is not None:
                self._use(-1)
            elif waiter in self._queue:
                self._queue.remove(waiter)
            self._run()

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
                self._let_in()
            except Exception as error:  # whoever waits raises it
                self._fail(error)
            with self._changed:
                if not (self._queue or self._used or self._slots or self._wants):
                    self._thread, self._rests = None, False
                    self._changed.notify_all()
                    return
                if not self._stirred:
                    self._changed.wait(self._idle_s())

    def _look(self) -> None:
        """See what others hold and want, and take or give back slots accordingly."""
        now, rests = time.monotonic(), self._rests
        if not rests and now - self._looked < (_RETRY_S if self._lacks() else _TICK_S):
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
        if free := [slot for slot in reversed(range(self._concurrency)) if slot not in view.holders][:missing]:
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
            spare = set(sorted(ours, reverse=True)[keep:])
            self._slots = ours - spare
            return spare, max(0, need - len(ours))

    def _let_in(self) -> None:
        """Give those who wait a slot and a place in time, as far as there are slots and the place is near."""
        missing_s = self._spend()
        while missing_s:
            now = self._clock()
            soon_s = _AHEAD_S * min(1.0, self._spent_s / max(now - self._booked, _AHEAD_S))
            missing_s += soon_s if soon_s > 2 * missing_s else 0.0
            (start,) = self._budget.book([missing_s])
            with self._changed:
                if start > self._end + _DUST_S:  # others have booked between
                    self._next = start
                self._end, self._booked, self._spent_s = start + missing_s, now, 0.0
                missing_s = self._spend()

    def _spend(self, own: Waiter | None = None) -> float:
        """Let in whom our span of time and our slots allow; the seconds to book for those who are due next.

        `own` is not asleep yet, and need not be woken.
        """
        with self._changed:
            now = self._clock()
            place = max(self._next, now)
            while self._queue and self._is_free():
                waiter = self._queue[0]
                if waiter.cost_s and place + waiter.cost_s > self._end + _DUST_S:
                    break
                self._queue.popleft().place = place
                self._use(1)
                if waiter is not own:
                    waiter.wake()
                place += waiter.cost_s
                self._next = place
                self._spent_s += waiter.cost_s
            if not self._queue or not self._is_free() or place - now > _HORIZON_S / 2:
                return 0.0
            due = islice(self._queue, min(len(self._slots), self._most) - self._used)
            sums = list(accumulate(waiter.cost_s for waiter in due))
            return max((total for total in sums if total <= _HORIZON_S), default=sums[0])

    def _idle_s(self) -> float:
        """Seconds until there is more to do, unless somebody stirs. The lock is held."""
        if self._queue and self._is_free():
            return min(_TICK_S, max(0.0, self._next - self._clock() - _HORIZON_S / 2))
        return _RETRY_S if self._lacks() else _TICK_S

    def _fail(self, error: Exception) -> None:
        with self._changed:
            for waiter in self._queue:
                waiter.wake(error)
            self._queue.clear()
            self._rests = False
            self._changed.notify_all()


def shared_limiter(settings: ExpertSettings, engine: Engine) -> Limiter:
    """The one of this process for the account that the settings describe and the database that it is shared on."""
    account = (settings.base_url, settings.model, settings.api_key_env)
    rates = (settings.requests_per_minute, settings.tokens_per_minute)
    return _limiter(engine, account, settings.concurrency, rates, settings.max_wait_s)


@one_of_each(maxsize=16)
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


os.register_at_fork(after_in_child=_limiter.cache_clear)  # type: ignore[attr-defined]  # its threads stay behind
