"""The heartbeat of whoever asks: without it, what a worker has claimed would be free for others."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from core.expert.ledger import LedgerSession


async def keep_claims(session: LedgerSession, thread: ThreadPoolExecutor) -> None:
    """Prolong the claims of a session, for as long as this is not cancelled; `thread` is where its database is used."""
    while True:
        await asyncio.sleep(session.beat_s)
        with suppress(SQLAlchemyError):  # a busy or absent database: the next beat may reach it
            await asyncio.get_running_loop().run_in_executor(thread, session.beat)
