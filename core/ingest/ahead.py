"""A file's rows, read and parsed by a process of its own while this one checks and stores them: two cores at work."""

from collections.abc import Iterator
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from core.errors import InputError
from core.ingest.formats import FORMATS
from core.ingest.reading import Row

_BATCH = 1000
"""Rows that travel together."""
_LARGE = 256 * 2**20
"""Bytes from which on a second process is worth its start."""


def read_rows(name: str, path: Path, *, threads: int) -> Iterator[Row]:
    """The rows of a file in the format `name`, of a large one by a process of its own if there is a core for it.

    Raises:
        InputError: as the format's reader.
    """
    if threads > 1 and path.stat().st_size >= _LARGE:
        return rows_ahead(name, path)
    return FORMATS[name](path)


def rows_ahead(name: str, path: Path) -> Iterator[Row]:
    """The rows of `FORMATS[name](path)`. The process ends with the iterator, and with this process.

    Raises:
        InputError: as the reader, or the process was killed.
    """
    context = get_context("spawn")  # this process has threads
    ours, theirs = context.Pipe(duplex=False)
    reader = context.Process(target=_send, args=(theirs, name, path), daemon=True, name=f"reader of {path.name}")
    reader.start()
    theirs.close()
    try:
        while (batch := _received(ours, path)) is not None:
            yield from batch
    finally:
        ours.close()
        reader.terminate()
        reader.join()


def _received(pipe: Connection, path: Path) -> list[Row] | None:
    """The next rows; None after the last."""
    try:
        found = pipe.recv()
    except EOFError as error:
        raise InputError(f"the process that read {path} was killed: is there enough memory?") from error
    if isinstance(found, Exception):
        raise found
    return found  # type: ignore[no-any-return]  # what `_send` sends


def _send(pipe: Connection, name: str, path: Path) -> None:
    """In the reader's process: batches of rows, then None, or the error that ends them."""
    try:
        rows = FORMATS[name](path)
        while batch := list(islice(rows, _BATCH)):
            pipe.send(batch)
        last: InputError | None = None
    except InputError as error:
        last = error
    except BrokenPipeError:  # nobody wants the rest
        return
    pipe.send(last)
