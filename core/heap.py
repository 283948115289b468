"""What the C library keeps of memory that was freed. Does nothing where it is not glibc."""

import ctypes
import ctypes.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""mallopt's names."""
_APART = 4 * 2**20
_USUAL = 32 * 2**20
"""Where glibc itself ends up once blocks of this size were freed; tensors below it come from the heap."""


@contextmanager
def large_tensors_apart() -> Iterator[None]:
    """Give tensors of 4 MB and more back to the system at once when they are freed, as long as the block lasts.

    A training step frees tensors of many sizes in another order than it made them. In glibc's heap that leaves holes:
    a step that needed 3.5 GB took 4.0 (bench_train_step), in the same time within 2 %.
    """
    _limit(_APART)
    try:
        yield
    finally:
        _limit(_USUAL)


def return_memory() -> None:
    """Give memory that is free inside the heap back to the system.

    A training frees tensors of ever other sizes: without this, glibc's heaps grew by 2 GB a training.
    """
    glibc = _glibc()
    if glibc is not None:
        glibc.malloc_trim(0)


def _limit(size: int) -> None:
    glibc = _glibc()
    if glibc is not None:
        glibc.mallopt(_MMAP_THRESHOLD, size)
        glibc.mallopt(_TRIM_THRESHOLD, 2 * size)


@cache
def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    return library if hasattr(library, "malloc_trim") else None  # which no other C library has
