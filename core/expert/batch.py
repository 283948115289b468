"""The expert through its Batch API: requests are handed in as files and fetched within a day, each paid for once.

The same ledger, claims, limits and dialect as online. A batch is in the database before it is sent, and our id of it in
its metadata, so that whoever comes after a kill goes on with it. A request is sent twice only if the endpoint shows a
batch later than it was looked for, after a kill (or a sleep longer than claims last) within the very exchange that
creates it.
"""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import IO

from core.expert.batch_books import BatchBooks
from core.expert.batch_file import write_requests
from core.expert.batch_flights import Flights
from core.expert.batch_judge import BatchJudge
from core.expert.batch_store import Line
from core.expert.ledger import Reply
from core.expert.limits import Limits
from core.expert.outcome import failure
from core.expert.progress import LoadBytes, Progress, Tally
from core.expert.request import ExpertRequest
from core.expert.settings import ExpertSettings
from core.expert.transport import Transport

AskOnline = Callable[[Sequence[ExpertRequest]], Awaitable[list[Reply]]]
_FIRST_WAIT_S = 0.25


async def ask_in_batches(
    requests: Sequence[ExpertRequest],
    *,
    settings: ExpertSettings,
    books: BatchBooks,
    limits: Limits,
    transport: Transport,
    load_image: LoadBytes,
    on_progress: Callable[[Progress], None] | None,
    ask_online: AskOnline,
) -> list[Reply]:
    """`ExpertClient.ask_async` in batch mode. `ask_online` answers a few requests at once, as it does otherwise."""
    unique = {request.key: request for request in requests}
    tally = Tally(list(unique), on_progress)
    tally.begin(await books.answered(list(unique)))
    flights = Flights(settings, transport, books, BatchJudge(settings, unique, transport), tally)
    run = _BatchRun(settings, unique, books, limits, transport, flights, tally, load_image, ask_online)
    heart = asyncio.create_task(books.keep_claims())
    try:
        await run.work()
    finally:
        heart.cancel()
    return [tally.outcomes[request.key] for request in requests]


class _BatchRun:
    def __init__(
        self,
        settings: ExpertSettings,
        requests: Mapping[str, ExpertRequest],
        books: BatchBooks,
        limits: Limits,
        transport: Transport,
        flights: Flights,
        tally: Tally,
        load_image: LoadBytes,
        ask_online: AskOnline,
    ) -> None:
        self._settings = settings
        self._requests = requests
        self._books = books
        self._limits = limits
        self._transport = transport
        self._flights = flights
        self._tally = tally
        self._load_image = load_image
        self._ask_online = ask_online
        self._waiting = [key for key in requests if key not in tally.outcomes]  # not ours to send yet
        self._ready: list[ExpertRequest] = []

    async def work(self) -> None:
        """Claim, look, send, until every request has an outcome or the run is given up."""
        first_wait = wait = min(_FIRST_WAIT_S, self._settings.batch_poll_s)
        while self._is_left():
            moved = await self._claim()
            moved |= await self._flights.look()
            broken = self._flights.broken or (self._limits.late() if self._is_left() else None)
            if broken is not None:
                raise broken  # what is under way stays at the endpoint, for a later run
            moved |= await self._send_all()
            if moved:
                wait = first_wait
            else:
                await asyncio.sleep(wait)
                wait = min(2 * wait, self._settings.batch_poll_s)

    def _is_left(self) -> bool:
        return bool(self._waiting or self._ready or self._flights.again or self._flights.batches)

    async def _claim(self) -> bool:
        """Settle what others have answered; what becomes ours is under way already, or ready to be sent."""
        keys = [*self._waiting, *self._flights.again]
        self._waiting, self._flights.again = [], []
        if not keys:
            return False
        claims = await self._books.claim(keys)
        for claim in claims.values():
            if isinstance(claim, Reply):
                self._tally.settle(claim, cached=True)
        ours = [key for key in keys if claims[key] is True]
        sent: set[str] = set()
        for batch in await self._books.under_way(ours):
            self._flights.adopt(batch)
            sent |= set(batch.lines)
        self._ready += [self._requests[key] for key in ours if key not in sent]
        self._waiting = [key for key in keys if claims[key] is False]
        return len(self._waiting) < len(keys)

    async def _send_all(self) -> bool:
        """Send what is ready, in as many batches as the limits and the endpoint's queue allow. Whether any was."""
        moved = False
        while self._ready and not (self._flights.is_full and self._flights.batches):
            if not self._transport.dialects.is_known:  # rather one answer at the full price than a day for nothing
                (reply,) = await self._ask_online([self._ready.pop(0)])
                self._tally.settle(reply, cached=False)
            else:
                with tempfile.TemporaryFile() as file:  # without a name: nothing of it is left after a kill
                    sent = await self._send(file)
                if not sent:
                    break
            moved = True
        return moved

    async def _send(self, file: IO[bytes]) -> bool:
        """Send the next batch, as much of it as the limits allow. False: nothing before something has ended."""
        dialect, next_ones = self._transport.dialects.current, self._ready[: self._flights.most_requests]
        parcel = await asyncio.to_thread(write_requests, file, next_ones, self._settings, dialect, self._load_image)
        del self._ready[: len(parcel.written) + len(parcel.unusable)]
        for request, error in parcel.unusable:  # no request was made: nothing to record
            await self._books.release(request.key)
            self._tally.settle(failure(self._settings, request, str(error)), cached=False)
        if not parcel.written:
            return True
        in_flight = bool(self._flights.batches)
        count = await self._limits.admit_some([item.most for item in parcel.written], in_flight=in_flight)
        self._ready[:0] = [item.request for item in parcel.written[count:]]
        self._flights.is_full = count < len(parcel.written)
        if not count:
            return False
        file.truncate(parcel.written[count - 1].end)
        tries, sent = self._flights.tries, parcel.written[:count]
        lines = {item.request.key: Line(attempt=tries.get(item.request.key, 0) + 1, most=item.most) for item in sent}
        await self._flights.submit(await self._books.open(lines, dialect), file)
        return True
