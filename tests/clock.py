"""Time that passes when a test says so: on a machine that others use, seconds of the wall say nothing."""

import time
from collections.abc import Callable


class Clock:
    """Stands in for the module `time` of what is tested. `now` is in Unix seconds; sleeping takes real time."""

    def __init__(self) -> None:
        self.now = 1e9
        self.sleep = time.sleep

    def time(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        return self.now


def eventually(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Return when it is true. It may take long where the machine is busy.

    Raises:
        AssertionError: it was not true in all these seconds.
    """
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
