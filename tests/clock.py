"""Time that passes when a test says so: on a machine that others use, seconds of the wall say nothing."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Clock:
    """Stands in for the module `time` of what is tested. `now` is in Unix seconds; sleeping takes real time."""

    def __init__(self) -> None:
        self.now = 1e9
        self.sleep = time.sleep

    def time(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        return self.now


def eventually(found: Callable[[], T], seconds: float = 60.0, every: float = 0.005) -> T:
    """The first true value of `found`, looked for every so many seconds. It may take long where the machine is busy.

    Raises:
        AssertionError: none was true in all these seconds.
    """
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(every)
    return value
