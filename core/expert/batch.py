"""The expert through its Batch API: requests are handed in as files and fetched within a day, each paid for once.

The same ledger, claims, limits and dialect as online. A batch is written to the database before it is sent, so that
whoever comes after a kill goes on with it. Requests are sent twice only if the endpoint creates a batch after a new
process has looked for it in vain, which takes a kill within the very exchange that creates it.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import IO, TypeVar

import openai
from openai.types import Batch as RemoteBatch
from sqlalchemy.exc import SQLAlchemyError

from core.errors import ExpertUnavailable
from core.expert.account import Account
from core.expert.batch_endpoint import BatchEndpoint
from core.expert.batch_file import MAX_REQUESTS, Result, read_results, write_requests
from core.expert.batch_judge import BatchJudge
from core.expert.batch_store import Batch, BatchStore, Line
from core.expert.estimate import Use
from core.expert.ledger import Ledger, LedgerSession, Reply
from core.expert.limits import Limits
from core.expert.outcome import failure, use_of
from core.expert.progress import LoadBytes, Progress, Tally
from core.expert.request import ExpertRequest
from core.expert.settings import ExpertSettings
from core.expert.transport import Transport, is_retryable

T = TypeVar("T")
_ENDED = ("completed", "expired", "cancelled", "failed")
_QUEUE_IS_FULL = "token_limit_exceeded"
_FIRST_WAIT_S = 0.25
_APPEARS_S = 5.0
"""Seconds in which a batch that was being created when its process ended appears among those of the account."""
_KEPT_S = 48 * 3600
"""Seconds after which a batch that the endpoint does not know any more is given up."""
_AT_ONCE = 256  # replies a transaction


class BatchRun:
    """One call of `ExpertClient.ask_async` in batch mode. `ask_online` answers a few requests at once."""

    def __init__(
        self,
        settings: ExpertSettings,
        *,
        session: LedgerSession,
        account: Account,
        limits: Limits,
        transport: Transport,
        thread: ThreadPoolExecutor,
        load_image: LoadBytes,
        on_progress: Callable[[Progress], None] | None,
        run: str,
        ask_online: Callable[[Sequence[ExpertRequest]], Awaitable[list[Reply]]],
    ) -> None:
        self._settings = settings
        self._session = session
        self._accounts = {run: account}
        self._limits = limits
        self._transport = transport
        self._endpoint = BatchEndpoint(transport)
        self._store = BatchStore(session.engine)
        self._thread = thread
        self._load_image = load_image
        self._on_progress = on_progress
        self._run = run
        self._ask_online = ask_online
        self._requests: dict[str, ExpertRequest] = {}
        self._waiting: list[str] = []  # not claimed yet, or again
        self._ready: list[ExpertRequest] = []  # ours to send
        self._flying: dict[str, Batch] = {}
        self._tries: dict[str, int] = {}
        self._most_requests = MAX_REQUESTS
        self._is_full = self._reached = False
        self._refused = self._faulty_looks = 0
        self._broken: Exception | None = None

    async def all(self, requests: Sequence[ExpertRequest], ledger: Ledger) -> list[Reply]:
        """One outcome a request, in order. Raises what `ExpertClient.ask_async` does."""
        self._requests = {request.key: request for request in requests}
        self._tally = Tally(list(self._requests), self._on_progress)
        self._judge = BatchJudge(self._settings, self._requests, self._transport, self._endpoint)
        known = await self._in_thread(partial(ledger.find, list(self._requests)))
        self._tally.begin({key: reply for key, reply in known.items() if reply.status == "answered"})
        self._waiting = [key for key in self._requests if key not in self._tally.outcomes]
        heart = asyncio.create_task(self._keep_claims())
        try:
            await self._work()
        finally:
            heart.cancel()
        return [self._tally.outcomes[request.key] for request in requests]

    async def _work(self) -> None:
        """Claim, look, send, until every request has an outcome or the run is given up."""
        wait = _FIRST_WAIT_S
        while self._waiting or self._ready or self._flying:
            moved = await self._claim()
            moved |= await self._look()
            broken = self._broken or self._judge.broken
            if broken is None and (self._waiting or self._ready or self._flying):
                broken = self._limits.late()
            if broken is not None:
                raise broken  # what is under way stays at the endpoint, for a later run
            moved |= await self._send_all()
            wait = _FIRST_WAIT_S if moved else min(2 * wait, self._settings.batch_poll_s)
            if not moved:
                await asyncio.sleep(min(wait, self._settings.batch_poll_s))

    async def _claim(self) -> bool:
        """Settle what others have answered; what becomes ours is under way already, or ready to be sent."""
        if not self._waiting:
            return False
        keys, self._waiting = self._waiting, []
        claims = await self._in_thread(partial(self._session.claim, keys))
        for claim in claims.values():
            if isinstance(claim, Reply):
                self._tally.settle(claim, cached=True)
        ours = [key for key in keys if claims[key] is True]
        known = await self._in_thread(partial(self._store.find, ours, self._transport.address))
        for batch in known:
            self._flying.setdefault(batch.id, batch).lines.update(batch.lines)
            self._tries |= {key: line.attempt - 1 for key, line in batch.lines.items()}
        sent = {key for batch in known for key in batch.lines}
        self._ready += [self._requests[key] for key in ours if key not in sent]
        self._waiting += [key for key in keys if claims[key] is False]
        return len(self._waiting) < len(keys)

    async def _send_all(self) -> bool:
        """Send what is ready, as many batches as the limits and the endpoint's queue allow. Whether any was sent."""
        moved = False
        while self._ready and not (self._is_full and self._flying):
            if not self._transport.dialects.is_known:  # rather one answer at the full price than a day for nothing
                (reply,) = await self._ask_online([self._ready.pop(0)])
                self._tally.settle(reply, cached=False)
            else:
                with tempfile.TemporaryFile() as file:  # without a name: nothing of it is left after a kill
                    self._is_full = not await self._send(file)
                if self._is_full:
                    break
            moved = True
        return moved

    async def _send(self, file: IO[bytes]) -> bool:
        """Send the next batch; False if not all of it, or nothing, is allowed now."""
        dialect, next_ones = self._transport.dialects.current, self._ready[: self._most_requests]
        parcel = await asyncio.to_thread(write_requests, file, next_ones, self._settings, dialect, self._load_image)
        del self._ready[: len(parcel.written) + len(parcel.unusable)]
        for request, error in parcel.unusable:  # no request was made: nothing to record
            await self._in_thread(partial(self._session.release, request.key))
            self._tally.settle(failure(self._settings, request, str(error)), cached=False)
        if not parcel.written:
            return True
        most = [item.most for item in parcel.written]
        count = await self._limits.admit_some(most, in_flight=bool(self._flying))
        self._ready[:0] = [item.request for item in parcel.written[count:]]
        if count:
            file.truncate(parcel.written[count - 1].end)
            lines = {
                item.request.key: Line(attempt=self._tries.get(item.request.key, 0) + 1, most=item.most)
                for item in parcel.written[:count]
            }
            account = self._accounts[self._run]
            await self._submit(
                Batch(
                    endpoint=self._transport.address, run=self._run, held=account.limited, dialect=dialect, lines=lines
                ),
                file,
            )
        return count == len(parcel.written)

    async def _submit(self, batch: Batch, file: IO[bytes]) -> None:
        await self._in_thread(partial(self._store.add, batch))
        try:
            batch.input_file_id = await self._endpoint.upload(file)
            await self._in_thread(partial(self._store.note, batch))
            created = await self._endpoint.create(batch)
        except openai.OpenAIError as error:
            if batch.input_file_id is None or not is_retryable(error):
                await self._strike(batch, batch.lines, [])
                await self._endpoint.discard(batch.input_file_id)
            raise self._unavailable(error, "takes no batch") from None  # its chain holds the request's headers
        batch.batch_id, batch.status = created.id, created.status
        await self._in_thread(partial(self._store.note, batch))
        self._flying[batch.id] = batch
        self._reached = True

    async def _look(self) -> bool:
        """Fetch what the batches under way have answered. Whether one has ended."""
        moved, completed = False, 0
        for batch in list(self._flying.values()):
            try:
                seen = await self._endpoint.look(batch)
                if seen is None:
                    moved |= await self._forget(batch)
                    continue
                if (batch.batch_id, batch.status) != (seen.id, seen.status):
                    batch.batch_id, batch.status = seen.id, seen.status
                    await self._in_thread(partial(self._store.note, batch))
                if seen.status in _ENDED:
                    await self._fetch(batch, seen)
                    moved = True
                elif seen.request_counts is not None:
                    completed += min(seen.request_counts.completed, len(batch.lines))
                self._reached, self._faulty_looks = True, 0
            except openai.OpenAIError as error:
                moved |= await self._count_fault(batch, error)
        self._tally.report(completed)
        return moved

    async def _fetch(self, batch: Batch, seen: RemoteBatch) -> None:
        """Use what a batch that has ended has answered; the rest is sent again."""
        if seen.status == "failed":
            return await self._take_back(batch, seen)
        for name in (seen.output_file_id, seen.error_file_id):
            if name is not None and batch.lines:
                with tempfile.TemporaryFile() as file:
                    await self._endpoint.download(name, file)
                    for results in _pieces(read_results(file), _AT_ONCE):
                        await self._use(batch, seen, results)
        await self._use(batch, seen, [Result(custom_id=key) for key in batch.lines])
        await self._endpoint.discard(batch.input_file_id)
        del self._flying[batch.id]
        self._is_full, self._refused = False, 0
        if seen.status == "cancelled":
            self._broken = ExpertUnavailable(
                f"batch {seen.id} was cancelled at {self._transport.address}. What it had answered is kept: run again "
                "to send the rest"
            )
        return None

    async def _use(self, batch: Batch, seen: RemoteBatch, results: Sequence[Result]) -> None:
        """Record the outcomes of these lines before they are used."""
        mine = {result.custom_id: result for result in results if result.custom_id in batch.lines}
        judged = {key: self._judge.outcome(result, batch, seen) for key, result in mine.items()}
        replies = [reply for reply in judged.values() if reply is not None]
        if replies:
            await self._in_thread(partial(self._session.record, replies))
        again = [key for key, reply in judged.items() if reply is None]
        self._tries |= {key: batch.lines[key].attempt for key in again}
        await self._strike(batch, mine, replies)
        for reply in replies:
            self._tally.settle(reply, cached=False)
        self._waiting += again

    async def _strike(self, batch: Batch, keys: Iterable[str], replies: Sequence[Reply]) -> None:
        """These lines are no longer under way: what they took takes the place of what is held for them."""
        lines = {key: batch.lines[key] for key in keys}
        closed = await self._in_thread(partial(self._store.close, batch, list(lines)))
        batch.lines = {key: line for key, line in batch.lines.items() if key not in lines}
        held = Use.total([lines[key].most for key in closed]) if batch.held else Use()
        used = Use.total([use_of(reply, lines[reply.key].most) for reply in replies if reply.key in closed])
        account = self._accounts.setdefault(batch.run, Account(self._session, self._settings, run=batch.run))
        await self._in_thread(partial(account.add, used - held))

    async def _take_back(self, batch: Batch, seen: RemoteBatch) -> None:
        """The endpoint has refused the whole batch: stop, or send a smaller one if its queue is full."""
        errors = (seen.errors.data if seen.errors else None) or []
        size = len(batch.lines)
        self._waiting += batch.lines
        await self._strike(batch, batch.lines, [])
        await self._endpoint.discard(batch.input_file_id)
        del self._flying[batch.id]
        self._refused += size == 1 and not self._flying
        if _QUEUE_IS_FULL in {error.code for error in errors} and self._refused < self._settings.max_attempts:
            self._is_full = bool(self._flying)  # until one of ours has ended
            self._most_requests = self._most_requests if self._is_full else max(1, size // 2)
            await asyncio.sleep(self._settings.batch_poll_s)
            return
        said = [f"{error.code}: {error.message}" + (f" (line {error.line})" if error.line else "") for error in errors]
        self._broken = ExpertUnavailable(
            f"the expert at {self._transport.address} refused batch {seen.id}, nothing of it was answered: "
            f"{self._transport.redact('; '.join(said[:5]) or 'no reason given')}"
        )

    async def _forget(self, batch: Batch) -> bool:
        """A batch that was about to be created when its process ended, and was not."""
        if time.time() < batch.found + _APPEARS_S:
            return False
        self._waiting += batch.lines
        await self._strike(batch, batch.lines, [])
        await self._endpoint.discard(batch.input_file_id)
        del self._flying[batch.id]
        return True

    async def _count_fault(self, batch: Batch, error: openai.OpenAIError) -> bool:
        """Give the endpoint up when it was never reached, or after too many looks in vain."""
        self._faulty_looks += 1
        if isinstance(error, openai.NotFoundError):
            if time.time() > batch.created + _KEPT_S:
                return await self._forget(batch)
            self._broken = ExpertUnavailable(
                f"the expert at {self._transport.address} does not know batch {batch.batch_id}, or its output, in "
                f"which {len(batch.lines)} of these requests were sent: use the API key of the account that sent it. "
                f"After {_KEPT_S // 3600} hours they are sent again"
            )
        elif not is_retryable(error) or not self._reached or self._faulty_looks >= self._settings.breaker:
            self._broken = self._unavailable(error, "does not show its batches")
        return False

    def _unavailable(self, error: openai.OpenAIError, what: str) -> ExpertUnavailable:
        if isinstance(error, openai.NotFoundError):
            return ExpertUnavailable(
                f'the expert at {self._transport.address} {what}: it has no Batch API; set expert.mode = "online"'
            )
        explained = self._transport.explain(error, 1)
        if isinstance(explained, ExpertUnavailable):
            return explained
        return ExpertUnavailable(
            f"the expert at {self._transport.address} {what}: {explained}. What was answered is kept, what is under "
            "way goes on: run again when it is well"
        )

    async def _keep_claims(self) -> None:
        while True:
            await asyncio.sleep(self._session.beat_s)
            with suppress(SQLAlchemyError):  # a busy or absent database: the next beat may reach it
                await self._in_thread(self._session.beat)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _pieces(results: Iterator[Result], size: int) -> Iterator[list[Result]]:
    return iter(lambda: list(islice(results, size)), [])
