"""Work on all rows, in blocks, on all cores. A row never depends on the block it is in."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import polars as pl

_TOKENS_A_BLOCK = 2**18
"""A block's 64-bit integers take 2 MiB. In smaller blocks, threads wait for the interpreter's lock between numpy's
loops for longer than the loops take: 2^15 gave 19 to 22 M tokens/s on two cores, 2^18 gives 31 to 36
(bench_corruption)."""


def over_blocks(rows: int, row_length: int, work: Callable[[slice], None]) -> None:
    """Call `work` with slices that make up range(rows), of rows of `row_length` tokens, in no particular order.

    numpy's loops release the interpreter's lock, so threads are enough: as many as polars uses (POLARS_MAX_THREADS).
    Blocks must write to different memory. The first error is raised, when the blocks under way have ended.
    """
    size = max(1, _TOKENS_A_BLOCK // max(row_length, 1))
    blocks = [slice(first, min(first + size, rows)) for first in range(0, rows, size)]
    threads = min(pl.thread_pool_size(), len(blocks))
    if threads <= 1:
        for block in blocks:
            work(block)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="blocks") as pool:
        try:
            for _ in pool.map(work, blocks):
                pass
        finally:
            pool.shutdown(cancel_futures=True)
