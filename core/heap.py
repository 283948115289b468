"""What the C library keeps of memory that was freed. Does nothing where it is not glibc."""

import ctypes
import ctypes.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""mallopt's names."""


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """Bytes. apart: blocks from this size on have pages of their own, which go back to the system when they are freed.
    trim: free bytes at a heap's end that go back. spare: those of them that stay nevertheless."""

    apart: int
    trim: int
    spare: int = 128 * 2**10


_USUAL = _Limits(apart=32 * 2**20, trim=64 * 2**20)
"""Where glibc itself ends up once blocks of this size were freed."""
_APART = _Limits(apart=4 * 2**20, trim=8 * 2**20)
_KEPT = _Limits(apart=32 * 2**20, trim=2**30, spare=64 * 2**20)
"""A heap of a thread that is not the main one has 64 MB, and goes back whole unless that much is to be spare."""
_lock = threading.Lock()
_wanted: dict[object, _Limits] = {}
"""By block, the newest last."""


@contextmanager
def large_tensors_apart() -> Iterator[None]:
    """Give tensors of 4 MB and more back to the system at once when they are freed, as long as the block lasts.

    A training step frees tensors of many sizes in another order than it made them. In glibc's heap that leaves holes:
    a step that needed 3.5 GB took 4.0 (bench_train_step), in the same time within 2 %.
    """
    with _limited(_APART):
        yield


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what tensors below 32 MB have freed for the next ones, as long as the block lasts; give it back then.

    Every step of a decoding makes tensors of the same sizes. In a thread that is not the main one, glibc gave their
    pages back in between: 140,000 page faults a step of 3,072 positions of 512, an eighth of its time.
    """
    try:
        with _limited(_KEPT):
            yield
    finally:
        return_memory()


def return_memory() -> None:
    """Give memory that is free inside the heap back to the system.

    A training frees tensors of ever other sizes: without this, glibc's heaps grew by 2 GB a training.
    """
    glibc = _glibc()
    if glibc is not None:
        glibc.malloc_trim(0)


@contextmanager
def _limited(limits: _Limits) -> Iterator[None]:
    """The limits are the process's: where blocks overlap, those of the newest hold."""
    block = object()
    with _lock:
        _wanted[block] = limits
        _set(limits)
    try:
        yield
    finally:
        with _lock:
            del _wanted[block]
            _set([_USUAL, *_wanted.values()][-1])


def _set(limits: _Limits) -> None:
    glibc = _glibc()
    if glibc is not None:
        glibc.mallopt(_MMAP_THRESHOLD, limits.apart)
        glibc.mallopt(_TRIM_THRESHOLD, limits.trim)
        glibc.mallopt(_TOP_PAD, limits.spare)


@cache
def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    return library if hasattr(library, "malloc_trim") else None  # which no other C library has
