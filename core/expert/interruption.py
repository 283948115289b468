"""How whoever is told to stop tells all that ask the expert, in whatever thread: a signal reaches the main one alone.

Import-light: the command line imports it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from core.errors import Interrupted


class Asking(Protocol):
    """Work that ends in order once it has an `error`: what is in flight is awaited and kept, nothing more is sent."""

    error: Exception | None


_asking: set[Asking] = set()
_interrupted = threading.Event()


def interrupt() -> None:
    """Let all that is asked in this process end in order, and nothing begin until `resume`."""
    _interrupted.set()
    for work in list(_asking):
        work.error = work.error or _interruption()


def resume() -> None:
    """Asking is possible again."""
    _interrupted.clear()


@contextmanager
def interruptible(work: Asking) -> Iterator[None]:
    """While the block runs, `interrupt` gives the work its error; at once, if it was called before."""
    _asking.add(work)
    if _interrupted.is_set():
        work.error = _interruption()
    try:
        yield
    finally:
        _asking.discard(work)


def _interruption() -> Interrupted:
    return Interrupted("the run was interrupted. What was answered is kept and not paid again: run again")
