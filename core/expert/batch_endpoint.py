"""The Batch API of an endpoint: upload, create, look, download. Raises what the SDK raises.

Whatever can be repeated without harm is tried again as chat completions are. A batch that is created twice would be
paid for twice: our id of it is in its metadata, and is looked for before a second try.
"""

from typing import IO

import httpx2
import openai
from openai.types import Batch as RemoteBatch

from core.expert.batch_file import URL
from core.expert.batch_store import Batch
from core.expert.transport import Transport

_LABEL = "redraft_batch"
_CLOCKS_S = 86_400
"""Seconds by which the endpoint's clock and ours may differ."""


class BatchEndpoint:
    """The files and batches behind a transport."""

    def __init__(self, transport: Transport) -> None:
        self._sdk = transport.sdk
        self._transport = transport

    async def upload(self, file: IO[bytes]) -> str:
        """Send the file, read from the disk as it goes: the endpoint's id of it."""

        async def send() -> str:
            return (await self._sdk.files.create(file=("requests.jsonl", file), purpose="batch")).id

        return await self._transport.retrying()(send)

    async def create(self, batch: Batch) -> RemoteBatch:
        """The batch of its input file, created once."""
        name = batch.input_file_id or ""
        async for attempt in self._transport.retrying():
            with attempt:
                # a try that failed on its way back has created it
                known = await self._find(batch) if attempt.retry_state.attempt_number > 1 else None
                return known or await self._sdk.batches.create(
                    input_file_id=name, endpoint=URL, completion_window="24h", metadata={_LABEL: batch.id}
                )
        raise AssertionError("tenacity raises what the last try raised")

    async def look(self, batch: Batch) -> RemoteBatch | None:
        """The batch as it is now; None if the endpoint has none of our id."""
        if batch.batch_id is None:
            return await self._transport.retrying()(self._find, batch)
        return await self._transport.retrying()(self._sdk.batches.retrieve, batch.batch_id)

    async def download(self, name: str, to: IO[bytes]) -> None:
        """Write a file of the endpoint to the disk."""

        async def receive() -> None:
            to.seek(0)
            to.truncate()
            try:
                async with self._sdk.files.with_streaming_response.content(name) as response:
                    async for chunk in response.iter_bytes():
                        to.write(chunk)
            except httpx2.HTTPError as error:  # the SDK explains those of the request alone
                raise openai.APIConnectionError(request=error.request) from error
            to.seek(0)

        await self._transport.retrying()(receive)

    async def discard(self, name: str | None) -> None:
        """Remove an input file that nobody needs any more, if the endpoint lets us."""
        if name is not None:
            try:
                await self._sdk.files.delete(name)
            except openai.OpenAIError:
                return  # it expires

    async def _find(self, batch: Batch) -> RemoteBatch | None:
        """The batch with our id among those of the account, the newest first."""
        async for found in self._sdk.batches.list(limit=100):
            if (found.metadata or {}).get(_LABEL) == batch.id:
                return found
            if found.created_at < batch.created - _CLOCKS_S:
                break
        return None
