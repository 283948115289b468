"""The hard stops of one `ask`: who may send, whether there is time, and that everything sent is settled."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from core.errors import BudgetExceeded
from core.expert.account import Account
from core.expert.estimate import Use
from core.expert.settings import ExpertSettings

T = TypeVar("T")
_POLL_S = 0.25
_GO_ON = "What was answered is kept and not paid again: raise the limit and run again"


class Limits:
    """Admits requests while the run's account and deadline allow it. `thread` is where the account is written."""

    def __init__(self, account: Account, settings: ExpertSettings, *, began: float, thread: ThreadPoolExecutor) -> None:
        self._account = account
        self._deadline_s = settings.deadline_s
        self._began = began
        self._thread = thread
        self._gate, self._settled = asyncio.Lock(), asyncio.Event()
        self._in_flight = 0

    def late(self) -> BudgetExceeded | None:
        """The error to stop with if the deadline has passed."""
        if self._deadline_s is None or time.time() < self._began + self._deadline_s:
            return None
        return BudgetExceeded(f"expert.deadline_s: the run has had its {self._deadline_s:g} seconds. {_GO_ON}")

    async def admit(self, most: Use, *, stopped: Callable[[], bool]) -> bool:
        """Return when a request that takes at most so much may be sent: True; False if `stopped` came first.

        Near a limit it waits for those in flight, which mostly take less than they might. One at a time asks; the
        others queue behind it.

        Raises:
            BudgetExceeded: nothing is in flight any more, and the request could still pass a limit.
        """
        if not self._account.limited:
            return not stopped()
        async with self._gate:
            while not stopped():
                alone = not self._in_flight
                self._settled.clear()
                if await self._try(most) or (alone and not await self._is_shared() and await self._last_try(most)):
                    return True
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_S):
                        await self._settled.wait()
        return False

    async def admit_some(self, most: Sequence[Use], *, in_flight: bool) -> int:
        """How many of these requests, in order, may be sent together now; 0: something in flight has to end first.

        Raises:
            BudgetExceeded: nothing is in flight, here or elsewhere, and the first could pass a limit.
        """
        hold = partial(self._account.hold_some, most)
        if (count := await self._call(hold)) or in_flight or await self._is_shared():
            return count
        if count := await self._call(hold):  # what others had in flight may have ended since
            return count
        raise await self._exceeded(most[0])

    async def settle(self, held: Use, used: Use) -> None:
        """Requests have ended: what they took replaces what was held for them."""
        await self._call(partial(self._account.settle, held, used))
        self._in_flight -= held.requests
        self._settled.set()

    async def _try(self, most: Use) -> bool:
        if not await self._call(partial(self._account.hold, most)):
            return False
        self._in_flight += 1
        return True

    async def _is_shared(self) -> bool:
        return await self._call(self._account.is_shared)

    async def _last_try(self, most: Use) -> bool:
        """What others had in flight may have ended since the first try."""
        if await self._try(most):
            return True
        raise await self._exceeded(most)

    async def _exceeded(self, most: Use) -> BudgetExceeded:
        return BudgetExceeded(f"{await self._call(partial(self._account.reached, most))}. {_GO_ON}")

    async def _call(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
