"""The expert over HTTP: many requests at once, each paid for once, every outcome in the ledger before it is used."""

import asyncio
import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

from pydantic import SecretStr

from core.errors import ExpertUnavailable, RowError
from core.expert.account import Account
from core.expert.background import Reports, process_background, run_awaited, run_blocking
from core.expert.batch import ask_in_batches
from core.expert.batch_books import BatchBooks
from core.expert.completion import RequestFault
from core.expert.estimate import Use
from core.expert.heart import keep_claims
from core.expert.ledger import Ledger, LedgerSession, Reply
from core.expert.limiter import Limiter, shared_limiter
from core.expert.limits import Limits
from core.expert.outcome import failure, judged, use_of
from core.expert.preparing import prepared
from core.expert.progress import LoadBytes, Progress, Tally
from core.expert.request import ExpertRequest
from core.expert.settings import ExpertSettings
from core.expert.transport import Transport, Withdrawn

T = TypeVar("T")
_POLL_S = 0.25
_WORKERS = 2
"""Requests that are worked on, for each that may be in flight: some are made ready, recorded, or to be tried again."""
_READY = 0.5
"""Requests that are made ready before there is a place for them, as a share of those in flight."""


class ExpertClient:
    """Asks the expert. Frozen settings, a key that is never printed, and the ledger; safe to use from many threads.

    Args:
        run: whose account the limits on cost, tokens and requests look at; clients of one run share it, in other
            processes too. Without one the client has an account of its own.
        began: Unix seconds from which expert.deadline_s counts; without it, now.
        limiter: how fast to ask; without one, the budget of the account that all clients on this database share.
    """

    def __init__(
        self,
        settings: ExpertSettings,
        *,
        ledger: Ledger,
        api_key: SecretStr | None = None,
        run: str = "",
        began: float | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        self.settings = settings
        self._ledger = ledger
        self._api_key = api_key
        self._run = run or uuid.uuid4().hex
        self._limiter = limiter or shared_limiter(settings, ledger.engine)
        self._began = time.time() if began is None else began

    def ask(
        self,
        requests: Sequence[ExpertRequest],
        load_image: LoadBytes,
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> list[Reply]:
        """`ask_async` for callers without an event loop; on_progress is called in the caller's thread."""
        return run_blocking(partial(self._ask, requests, load_image), on_progress)

    async def ask_async(
        self,
        requests: Sequence[ExpertRequest],
        load_image: LoadBytes,
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> list[Reply]:
        """One outcome a request, in order; equal requests share one. A request that failed is a Reply that says so.

        Args:
            load_image: sha256 -> encoded bytes; a RowError, KeyError or OSError of it fails that request alone.

        Raises:
            ExpertUnavailable: the endpoint refuses or failed `breaker` times in a row. What was answered is kept.
            BudgetExceeded: a limit or the deadline was reached. Requests in flight were brought to their end and kept.
        """
        return await run_awaited(partial(self._ask, requests, load_image), on_progress)

    async def _ask(
        self, requests: Sequence[ExpertRequest], load_image: LoadBytes, reports: Reports[Progress]
    ) -> list[Reply]:
        session = self._ledger.session()
        account = Account(session, self.settings, run=self._run)
        # one thread: SQLite has one writer, and waiting for it must not stop the event loop
        with ThreadPoolExecutor(1, thread_name_prefix="ledger") as thread:
            try:
                connection = process_background().transport(self.settings, self._api_key, self._limiter)
                async with connection as transport:
                    limits = Limits(account, self.settings, began=self._began, thread=thread)
                    run = partial(_Run, self.settings, session, limits, transport, thread, load_image)
                    if self.settings.mode == "online":
                        return await run(reports).all(requests, self._ledger)
                    return await ask_in_batches(
                        requests,
                        settings=self.settings,
                        books=BatchBooks(self.settings, self._ledger, session, account, run=self._run, thread=thread),
                        limits=limits,
                        transport=transport,
                        load_image=load_image,
                        on_progress=reports.put,
                        ask_online=lambda some: run(Reports.unheard()).all(some, self._ledger),
                    )
            finally:
                await asyncio.shield(asyncio.get_running_loop().run_in_executor(thread, self._close, session))

    def _close(self, session: LedgerSession) -> None:
        session.close()
        self._limiter.rest()


class _Run:
    """One call of `ask_async`."""

    def __init__(
        self,
        settings: ExpertSettings,
        session: LedgerSession,
        limits: Limits,
        transport: Transport,
        thread: ThreadPoolExecutor,
        load_image: LoadBytes,
        reports: Reports[Progress],
    ) -> None:
        self._settings = settings
        self._session = session
        self._limits = limits
        self._transport = transport
        self._thread = thread
        self._load_image = load_image
        self._reports = reports
        self._waiting: deque[ExpertRequest] = deque()
        self._claimed: deque[ExpertRequest] = deque()
        self._claiming, self._writing = asyncio.Lock(), asyncio.Lock()
        self._ready = asyncio.Semaphore(math.ceil(_READY * settings.concurrency))
        self._unsent: dict[str, Use] = {}
        self._unwritten: list[tuple[Reply, Use]] = []
        self._broken: Exception | None = None
        self._faults_in_a_row = 0
        self._reached = False

    async def all(self, requests: Sequence[ExpertRequest], ledger: Ledger) -> list[Reply]:
        unique = {request.key: request for request in requests}
        known = await self._in_thread(partial(ledger.find, list(unique)))
        self._tally = Tally(list(unique), self._reports.put)
        self._tally.begin({key: reply for key, reply in known.items() if reply.status == "answered"})
        self._waiting.extend(request for key, request in unique.items() if key not in self._tally.outcomes)
        heart = asyncio.create_task(keep_claims(self._session, self._thread))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_WORKERS * self._settings.concurrency, len(self._waiting))):
                    group.create_task(self._work())
        finally:
            heart.cancel()
            await asyncio.shield(self._close())
        if self._broken is not None:
            raise self._broken
        return [self._tally.outcomes[request.key] for request in requests]

    async def _work(self) -> None:
        """Send requests until none is left or the run is given up; one in flight is always brought to its end."""
        try:
            while (request := await self._next()) is not None:
                await self._ready.acquire()
                with ExitStack() as ready:
                    ready.callback(self._ready.release)
                    await self._send(request, on_turn=ready.close)
        except Exception as error:
            self._broken = error  # raised when the requests in flight have ended: they may be paid for

    async def _next(self) -> ExpertRequest | None:
        """A request that is ours to send; None when there is none left. Claims are taken many at a time."""
        refused = 0
        async with self._claiming:
            while not self._claimed and self._waiting and not self._is_stopped():
                batch = [self._waiting.popleft() for _ in range(min(self._settings.concurrency, len(self._waiting)))]
                claims = await self._in_thread(partial(self._session.claim, [request.key for request in batch]))
                for request in batch:
                    claim = claims[request.key]
                    if isinstance(claim, Reply):
                        self._tally.settle(claim, cached=True)
                    else:
                        (self._claimed if claim else self._waiting).append(request)
                refused = 0 if any(claims.values()) else refused + len(batch)
                if self._waiting and refused >= len(self._waiting):  # other workers are at all of them
                    await asyncio.sleep(_POLL_S)
                    refused = 0
            return self._claimed.popleft() if self._claimed and not self._is_stopped() else None

    def _is_stopped(self) -> bool:
        """Whether the run is given up. Asked while there is something left to send: else nothing is too late."""
        if self._broken is None:
            self._broken = self._reports.error or self._limits.late()
        return self._broken is not None

    async def _send(self, request: ExpertRequest, on_turn: Callable[[], None]) -> None:
        """Make the request ready, send it when there is a place in flight, and record what came of it."""
        try:
            outline, image, most = await prepared(request, self._load_image, self._settings)
        except RowError as error:  # no request was made: nothing to record
            await self._in_thread(partial(self._session.release, request.key))
            self._tally.settle(failure(self._settings, request, str(error)), cached=False)
            return
        if not await self._limits.admit(most, stopped=self._is_stopped):
            return  # unsent: the session gives its claim back
        self._unsent[request.key] = most
        held = ExitStack()  # the place in flight, until the reply is in the ledger

        def begin() -> None:
            self._unsent.pop(request.key, None)
            on_turn()

        completion = None
        try:
            completion = await self._transport.complete(
                outline, image, tokens=most.tokens, stopped=self._is_stopped, on_turn=begin
            )
        except Withdrawn:
            self._unsent.pop(request.key, None)  # settled here, not at the end once more
            await self._limits.settle(most, Use())
            return
        except RequestFault as error:
            reply = failure(self._settings, request, str(error), error.attempts)
            self._count_fault(error)
        except ExpertUnavailable as error:
            reply = failure(self._settings, request, str(error), 1)
            self._broken = error
        else:
            held.callback(self._transport.leave)
            self._reached, self._faults_in_a_row = True, 0
        with held:
            if completion is not None:
                reply = judged(self._settings, request, completion)
            await self._record(reply, most)
        self._tally.settle(reply, cached=False)

    async def _record(self, reply: Reply, most: Use) -> None:
        """Return when the reply is in the ledger. What arrives while one transaction runs shares the next."""
        self._unwritten.append((reply, most))
        async with self._writing:
            if (reply, most) in self._unwritten:
                await self._flush()

    async def _flush(self) -> None:
        batch = list(self._unwritten)
        if batch:
            await self._in_thread(partial(self._session.record, [reply for reply, _ in batch]))
            self._unwritten = self._unwritten[len(batch) :]
            held, used = [most for _, most in batch], [use_of(reply, most) for reply, most in batch]
            await self._limits.settle(Use.total(held), Use.total(used))

    async def _close(self) -> None:
        """After an interruption, too: what was paid for is written, and what was never sent is not counted."""
        await self._flush()
        if self._unsent:
            await self._limits.settle(Use.total(list(self._unsent.values())), Use())

    def _count_fault(self, error: RequestFault) -> None:
        """Give the endpoint up when it was never reached, or after too many failures in a row."""
        self._faults_in_a_row += 1
        if error.reason == "connection" and not self._reached:
            self._broken = ExpertUnavailable(
                f"{error.detail}. Start the expert, or correct expert.base_url; without a base_url the reference "
                "expert is used"
            )
        elif self._faults_in_a_row >= self._settings.breaker:
            self._broken = ExpertUnavailable(
                f"the expert at {self._transport.address} failed {self._faults_in_a_row} requests in a row, "
                f"the last with {error}. What it answered so far is kept: run again when it is well"
            )

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
