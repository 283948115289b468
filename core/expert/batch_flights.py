"""The batches that are under way: handed in, looked at, and used when they have ended."""

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import IO

import openai
from openai.types import Batch as RemoteBatch

from core.errors import ExpertUnavailable
from core.expert.batch_books import BatchBooks
from core.expert.batch_endpoint import BatchEndpoint
from core.expert.batch_file import MAX_REQUESTS, Result, read_results
from core.expert.batch_judge import BatchJudge
from core.expert.batch_store import Batch
from core.expert.progress import Tally
from core.expert.settings import ExpertSettings
from core.expert.transport import Transport, is_retryable

_ENDED = ("completed", "expired", "cancelled", "failed")
_QUEUE_IS_FULL = "token_limit_exceeded"
_APPEARS_S = 5.0
"""Seconds in which a batch that was being created when its process ended appears among those of the account."""
_KEPT_S = 48 * 3600
"""Seconds after which a batch that the endpoint does not know any more is given up."""
_LOOKS = 3
"""How often a batch, or its output, may be unknown: some endpoints show it a little later than they name it."""
_AT_ONCE = 256  # replies a transaction


class Flights:
    """The batches of one worker.

    again: keys of requests that have to be sent again, or for the first time. most_requests: how many the endpoint's
    queue takes at once; is_full: it takes none before one of ours has ended. broken: why the run has to stop.
    """

    def __init__(
        self, settings: ExpertSettings, transport: Transport, books: BatchBooks, judge: BatchJudge, tally: Tally
    ) -> None:
        self.batches: dict[str, Batch] = {}
        self.again: list[str] = []
        self.tries: dict[str, int] = {}
        self.most_requests = MAX_REQUESTS
        self.is_full = False
        self.broken: Exception | None = None
        self._settings = settings
        self._transport = transport
        self._endpoint = BatchEndpoint(transport)
        self._books = books
        self._judge = judge
        self._tally = tally
        self._reached = False
        self._refused = 0

    def adopt(self, batch: Batch) -> None:
        """Go on with a batch that was sent before, by whomever."""
        self.batches.setdefault(batch.id, batch).lines.update(batch.lines)
        self.tries |= {key: line.attempt - 1 for key, line in batch.lines.items()}

    async def submit(self, batch: Batch, file: IO[bytes]) -> None:
        """Hand in a batch that is in the books. Raises ExpertUnavailable."""
        try:
            batch.input_file_id = await self._endpoint.upload(file)
            await self._books.note(batch)
            created = await self._endpoint.create(batch)
        except openai.OpenAIError as error:
            if batch.input_file_id is None or not is_retryable(error):  # else it may have been created
                await self._drop(batch)
            raise self._unavailable(error, "takes no batch") from None  # its chain holds the request's headers
        batch.batch_id, batch.status = created.id, created.status
        await self._books.note(batch)
        self.batches[batch.id] = batch
        self._reached = True

    async def look(self) -> bool:
        """Use what the batches have answered that have ended. Whether there was one."""
        moved, completed = False, 0
        for batch in list(self.batches.values()):
            try:
                seen = await self._endpoint.look(batch)
                if seen is None:
                    moved |= await self._give_up(batch, time.time() > batch.found + _APPEARS_S)
                    continue
                if (batch.batch_id, batch.status) != (seen.id, seen.status):
                    batch.batch_id, batch.status = seen.id, seen.status
                    await self._books.note(batch)
                if seen.status in _ENDED:
                    await self._end(batch, seen)
                    moved = True
                elif seen.request_counts is not None:
                    completed += min(seen.request_counts.completed, len(batch.lines))
                self._reached, batch.faults = True, 0
            except openai.OpenAIError as error:
                moved |= await self._count_fault(batch, error)
        self.broken = self.broken or self._judge.broken
        self._tally.report(completed)
        return moved

    async def _end(self, batch: Batch, seen: RemoteBatch) -> None:
        """Use what the batch has answered; the rest is to be sent again."""
        if seen.status == "failed":
            return await self._take_back(batch, seen)
        for name in (seen.output_file_id, seen.error_file_id):
            if name is not None and batch.lines:
                with tempfile.TemporaryFile() as file:
                    await self._endpoint.download(name, file)
                    for results in _pieces(read_results(file), _AT_ONCE):
                        await self._use(batch, seen, results)
        await self._use(batch, seen, [Result(custom_id=key) for key in batch.lines])
        await self._drop(batch)
        self.is_full, self._refused = False, 0
        if seen.status == "cancelled":
            self.broken = ExpertUnavailable(
                f"batch {seen.id} was cancelled at {self._transport.address}. What it had answered is kept: run again "
                "to send the rest"
            )
        return None

    async def _use(self, batch: Batch, seen: RemoteBatch, results: Sequence[Result]) -> None:
        """Record the outcomes of these lines before they are used."""
        mine = {result.custom_id: result for result in results if result.custom_id in batch.lines}
        new = [result for key, result in mine.items() if key not in self._tally.outcomes]  # of two batches one counts
        judged = {result.custom_id: self._judge.outcome(result, batch, seen) for result in new}
        replies = [reply for reply in judged.values() if reply is not None]
        again = [key for key, reply in judged.items() if reply is None]
        self.tries |= {key: batch.lines[key].attempt for key in again}
        await self._books.close(batch, mine, replies)
        for reply in replies:
            self._tally.settle(reply, cached=False)
        self.again += again

    async def _take_back(self, batch: Batch, seen: RemoteBatch) -> None:
        """The endpoint has refused the whole batch: send a smaller one if its queue is full, else stop."""
        errors, size = (seen.errors.data if seen.errors else None) or [], len(batch.lines)
        self.again += batch.lines
        await self._drop(batch)
        self._refused += size == 1 and not self.batches
        if _QUEUE_IS_FULL in {error.code for error in errors} and self._refused < self._settings.max_attempts:
            self.is_full = bool(self.batches)
            if not self.is_full:
                self.most_requests = max(1, size // 2)
            await asyncio.sleep(self._settings.batch_poll_s)
            return
        said = [f"{error.code}: {error.message}" + (f" (line {error.line})" if error.line else "") for error in errors]
        self.broken = ExpertUnavailable(
            f"the expert at {self._transport.address} refused batch {seen.id}, nothing of it was answered: "
            f"{self._transport.redact('; '.join(said[:5]) or 'no reason given')}"
        )

    async def _give_up(self, batch: Batch, is_gone: bool) -> bool:
        """Send again what is in a batch that does not exist, or no longer."""
        if is_gone:
            self.again += batch.lines
            await self._drop(batch)
        return is_gone

    async def _drop(self, batch: Batch) -> None:
        """Nothing of the batch is under way any more."""
        await self._books.close(batch, list(batch.lines))
        await self._endpoint.discard(batch.input_file_id)
        self.batches.pop(batch.id, None)

    async def _count_fault(self, batch: Batch, error: openai.OpenAIError) -> bool:
        """Give the endpoint up when it was never reached, or after too many looks in vain. Whether a batch is gone."""
        batch.faults += 1
        if isinstance(error, openai.NotFoundError):
            if batch.faults >= _LOOKS:
                self.broken = ExpertUnavailable(
                    f"the expert at {self._transport.address} does not know batch {batch.batch_id}, or its output, in "
                    f"which {len(batch.lines)} of these requests were sent: use the API key of the account that sent "
                    f"it. After {_KEPT_S // 3600} hours they are sent again"
                )
            return await self._give_up(batch, time.time() > batch.created + _KEPT_S)
        if not is_retryable(error) or not self._reached or batch.faults >= self._settings.breaker:
            self.broken = self._unavailable(error, "does not show its batches")
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


def _pieces(results: Iterator[Result], size: int) -> Iterator[list[Result]]:
    return iter(lambda: list(islice(results, size)), [])
