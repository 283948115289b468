"""What batch mode writes to and reads from the database: claims, batches, outcomes and accounts, on the one thread."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from core.addresses import endpoint_address
from core.expert.account import Account
from core.expert.batch_store import Batch, BatchStore, Line
from core.expert.dialect import Dialect
from core.expert.estimate import Use
from core.expert.heart import keep_claims
from core.expert.ledger import Ledger, LedgerSession, Reply
from core.expert.outcome import use_of
from core.expert.settings import ExpertSettings

T = TypeVar("T")


class BatchBooks:
    """One worker's books. `run` is whose account new batches are on."""

    def __init__(
        self,
        settings: ExpertSettings,
        ledger: Ledger,
        session: LedgerSession,
        account: Account,
        *,
        run: str,
        thread: ThreadPoolExecutor,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._session = session
        self._store = BatchStore(session.engine)
        self._accounts = {run: account}
        self._endpoint = endpoint_address(settings.base_url)[0]
        self._run = run
        self._thread = thread

    async def answered(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The replies that there are."""
        known = await self._in_thread(partial(self._ledger.find, keys))
        return {key: reply for key, reply in known.items() if reply.status == "answered"}

    async def claim(self, keys: Sequence[str]) -> dict[str, Reply | bool]:
        """See LedgerSession.claim; a claim of ours is claimed again."""
        return await self._in_thread(partial(self._session.claim, keys))

    async def release(self, key: str) -> None:
        """Give a claim back without an outcome."""
        await self._in_thread(partial(self._session.release, key))

    async def under_way(self, keys: Sequence[str]) -> list[Batch]:
        """The batches at the endpoint that hold some of these requests, with those alone."""
        return await self._in_thread(partial(self._store.find, keys, self._endpoint))

    async def open(self, lines: dict[str, Line], dialect: Dialect) -> Batch:
        """Write down a batch that is about to be sent, and is held on the account if there are limits."""
        held = self._accounts[self._run].limited
        batch = Batch(endpoint=self._endpoint, run=self._run, held=held, dialect=dialect, lines=lines)
        await self._in_thread(partial(self._store.add, batch))
        return batch

    async def note(self, batch: Batch) -> None:
        """Write down what the endpoint has said about it."""
        await self._in_thread(partial(self._store.note, batch))

    async def close(self, batch: Batch, keys: Iterable[str], replies: Sequence[Reply] = ()) -> None:
        """These requests are no longer under way: record the replies, and what they took in the place of what is held.

        A line is struck once. A kill before that leaves its request counted at the most that it may take.
        """
        lines = {key: batch.lines[key] for key in keys}
        if replies:
            await self._in_thread(partial(self._session.record, replies))
        closed = await self._in_thread(partial(self._store.close, batch, list(lines)))
        batch.lines = {key: line for key, line in batch.lines.items() if key not in lines}
        held = Use.total([lines[key].most for key in closed]) if batch.held else Use()
        used = Use.total([use_of(reply, lines[reply.key].most) for reply in replies if reply.key in closed])
        account = self._accounts.setdefault(batch.run, Account(self._session, self._settings, run=batch.run))
        await self._in_thread(partial(account.add, used - held))

    async def keep_claims(self) -> None:
        """Prolong our claims, for as long as this is not cancelled."""
        await keep_claims(self._session, self._thread)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
