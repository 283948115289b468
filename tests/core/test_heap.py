"""Freed tensors go back to the system, whatever small ones lie between them in the heap."""

from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context

import psutil
import torch

from core.heap import large_tensors_apart

_COUNT, _LARGE, _SMALL = 40, 8 * 2**20, 2**19
_BYTES = _COUNT * _LARGE


def _kept(block: AbstractContextManager[None]) -> int:
    """Bytes that the process still has after 40 tensors of 8 MB, with small ones between them, were freed."""
    small = []
    with block:
        before = psutil.Process().memory_info().rss
        large = []
        for _ in range(_COUNT):
            large.append(torch.ones(_LARGE // 4))
            small.append(torch.ones(_SMALL // 4))
        large.clear()
        return psutil.Process().memory_info().rss - before - _COUNT * _SMALL


def _in_a_fresh_process() -> tuple[int, int]:
    torch.ones(2**23 - 2**16)  # glibc keeps what is smaller than the largest block that it was given back
    return _kept(large_tensors_apart()), _kept(nullcontext())


def test_large_tensors_leave_no_holes_in_the_heap():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        within, outside = process.submit(_in_a_fresh_process).result()
    assert within < _BYTES / 10
    assert outside > _BYTES / 2, "what this is for"
