"""One event loop and one pool of open connections for all that a process asks of experts.

The loop runs in a thread of its own from the first call on. Callers in other threads wait there, and what is reported
to them is handled there: a slow caller holds up nobody else.
"""

import asyncio
import atexit
import os
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from pydantic import SecretStr

from core.expert.limiter import Limiter
from core.expert.settings import ExpertSettings
from core.expert.transport import Transport
from core.interruption import interruption, on_interruption

T = TypeVar("T")
R = TypeVar("R")
_THREADS = 16
"""Images that are loaded and encoded at once: a store may be far away."""
_IDLE_TRANSPORTS = 4
_SHOW_S = 0.1
"""How often reports are looked for: a thread that woke for each would take the interpreter from the loop."""
_STOP_S = 1.0


class Reports(Generic[R]):
    """What work has to say on its way to the caller: `put` in the loop's thread, `show` in the caller's.

    error: what the caller's function raised; the work should end, and nothing more is shown.
    """

    def __init__(self, show: Callable[[R], None] | None, deliver: Callable[[R], object]) -> None:
        self.error: Exception | None = None
        self._show = show
        self._deliver = deliver

    @staticmethod
    def unheard() -> "Reports[R]":
        """Reports to nobody."""
        return Reports(None, lambda _report: None)

    def interrupt(self) -> None:
        """End in order: what is in flight is awaited and kept, nothing more is sent."""
        self.error = self.error or interruption()

    def put(self, report: R) -> None:
        """Pass on."""
        if self._show is not None:
            self._deliver(report)

    def show(self, report: R) -> None:
        """Call the caller's function."""
        if self._show is None or self.error is not None:
            return
        try:
            self._show(report)
        except Exception as error:
            self.error = error


Work = Callable[[Reports[R]], Coroutine[Any, Any, T]]


def run_blocking(work: Work[R, T], show: Callable[[R], None] | None) -> T:
    """The result of the work; `show` is called in this thread with each of its reports.

    An interruption of this thread cancels the work and waits for its end.
    """
    waiting: deque[R] = deque()
    reports: Reports[R] = Reports(show, waiting.append)
    with on_interruption(reports.interrupt):
        task = process_background().start(work(reports))
        try:
            is_done = False
            while not is_done:  # a wait without an end would hold back what is raised in this thread
                is_done = bool(wait([task.done], timeout=_SHOW_S).done)
                while waiting:
                    reports.show(waiting.popleft())
        except BaseException:
            task.cancel()
            wait([task.done])
            raise
    if reports.error is not None:
        raise reports.error
    return task.done.result()


async def run_awaited(work: Work[R, T], show: Callable[[R], None] | None) -> T:
    """`run_blocking` for callers with an event loop: `show` is called in it."""
    loop = asyncio.get_running_loop()
    reports: Reports[R] = Reports(show, lambda report: loop.call_soon_threadsafe(reports.show, report))
    with on_interruption(reports.interrupt):
        task = process_background().start(work(reports))
        waiter = asyncio.wrap_future(task.done)
        try:
            await asyncio.wait([waiter])
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([waiter])
            raise
    if reports.error is not None:
        raise reports.error
    return waiter.result()


class _Task(Generic[T]):
    """Work in another thread's loop. `done`: its outcome, once it has really ended."""

    def __init__(self, work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> None:
        self.done: Future[T] = Future()
        self._work, self._loop = work, loop
        loop.call_soon_threadsafe(self._begin)

    def cancel(self) -> None:
        """Ask it to end. It may take its time, to write what was paid for."""
        self._loop.call_soon_threadsafe(lambda: self._task.cancel())

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(self._end)

    def _end(self, task: "asyncio.Task[T]") -> None:
        if task.cancelled():
            self.done.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.done.set_exception(error)
        else:
            self.done.set_result(task.result())


class Background:
    """A running event loop, and its open transports: those in use, and a few more for whoever asks next."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="expert-images"))
        self._transports: OrderedDict[tuple[Any, ...], Transport] = OrderedDict()
        self._users: dict[tuple[Any, ...], int] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, name="expert", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> "_Task[T]":
        """Begin the work, from any thread, in the context of the caller."""
        return _Task(work, self._loop)

    @asynccontextmanager
    async def transport(
        self, settings: ExpertSettings, api_key: SecretStr | None, limiter: Limiter
    ) -> AsyncIterator[Transport]:
        """The open transport for these; called in the loop."""
        key = (settings, api_key, id(limiter))  # a transport keeps its limiter, so that no other gets this id
        if key not in self._transports:
            self._transports[key] = Transport(settings, api_key, limiter)
        self._transports.move_to_end(key)
        self._users[key] = self._users.setdefault(key, 0) + 1
        try:
            yield self._transports[key]
        finally:
            self._users[key] -= 1
            await self._close(keep=_IDLE_TRANSPORTS)

    def stop(self) -> None:
        """Close everything, at the end of the process."""
        task = self.start(self._close(keep=0))
        wait([task.done], timeout=_STOP_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_S)

    async def _close(self, *, keep: int) -> None:
        """Close the transports that nobody uses but the `keep` last used."""
        idle = [key for key in self._transports if not self._users[key]]
        gone = [self._transports.pop(key) for key in idle[: max(0, len(idle) - keep)]]
        self._users = {key: users for key, users in self._users.items() if key in self._transports}
        for transport in gone:  # others may come and go meanwhile
            await transport.close()


_lock = threading.Lock()
_background: Background | None = None
_parents: list[Background] = []


def process_background() -> Background:
    """The one of this process."""
    global _background
    with _lock:
        if _background is None:
            _background = Background()
            atexit.register(_background.stop)
        return _background


def _leave_to_parent() -> None:
    """A forked process has no copy of the thread. What it inherited is kept: closing it would reach into the parent."""
    global _background, _lock
    _lock = threading.Lock()
    if _background is not None:
        atexit.unregister(_background.stop)
        _parents.append(_background)
        _background = None


os.register_at_fork(after_in_child=_leave_to_parent)
