"""How whoever is told to stop tells all work in this process, in whatever thread: a signal reaches the main one alone.

Work that goes step by step calls `check` before each; work that waits for something else says with `on_interruption`
how that is ended. Import-light: the command line imports it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from core.errors import Interrupted

_stops: list[Callable[[], None]] = []
_interrupted = threading.Event()


def interrupt() -> None:
    """Let all that goes on in this process end in order, and nothing begin until `resume`."""
    _interrupted.set()
    for stop in list(_stops):
        stop()


def resume() -> None:
    """Work is possible again."""
    _interrupted.clear()


def check() -> None:
    """Raise Interrupted after `interrupt`."""
    if _interrupted.is_set():
        raise interruption()


def interruption() -> Interrupted:
    """What work that was ended raises."""
    return Interrupted(
        "the run was interrupted. What is finished, and what the expert answered, is kept and not paid again: run again"
    )


@contextmanager
def on_interruption(stop: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `interrupt` calls `stop`, which must not wait; at once, if it was called before."""
    _stops.append(stop)
    if _interrupted.is_set():
        stop()
    try:
        yield
    finally:
        _stops.remove(stop)
