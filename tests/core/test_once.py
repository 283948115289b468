"""Threads that ask for the same thing at once get the same thing."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from core.once import one_of_each


def test_threads_that_ask_at_once_get_one_of_each():
    made, gate = [], threading.Barrier(8)

    @one_of_each(maxsize=4)
    def thing(name: str) -> object:
        made.append(name)
        time.sleep(0.01)
        return object()

    def ask(number: int) -> object:
        gate.wait()
        return thing(f"{number % 2}")

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(8)))
    assert sorted(made) == ["0", "1"]
    assert len({id(one) for one in found[::2]}) == 1
    assert found[0] is not found[1]
