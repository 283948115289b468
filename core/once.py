"""A memory for things of which a process has one, like an engine or a limiter, whichever thread asks first."""

from collections.abc import Callable
from functools import lru_cache, wraps
from threading import RLock
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def one_of_each(maxsize: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """As `functools.lru_cache`, which alone would make two for two threads that ask for the same at once."""

    def decorate(make: Callable[P, T]) -> Callable[P, T]:
        remembered: Any = lru_cache(maxsize)(make)
        lock = RLock()

        @wraps(make)
        def made(*args: P.args, **kwargs: P.kwargs) -> T:
            with lock:
                found: T = remembered(*args, **kwargs)
                return found

        made.cache_clear = remembered.cache_clear  # type: ignore[attr-defined]  # as functools' own has it
        return made

    return decorate
