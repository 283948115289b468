"""How many rows fit on the device: found out by running out of its memory, and going on with half of them."""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from core.errors import InputError

R = TypeVar("R")


class Room:
    """The most rows that may be worked on together, as far as is known. A piece of work keeps one.

    Which tokens come out does not depend on it in fp32; in bf16 it may, as any size of a batch may.
    """

    def __init__(self, tell: Callable[[str], None] = lambda _words: None) -> None:
        self.rows = sys.maxsize
        """Rows that may be worked on together."""
        self.halvings = 0
        """How often the memory was too small."""
        self._tell = tell

    def pieces(self, rows: Sequence[int], work: Callable[[list[int]], R]) -> Iterator[tuple[list[int], R]]:
        """`work` on all rows, together or in pieces that fit, in order.

        Raises:
            InputError: if not even one row fits.
        """
        waiting = deque([list(rows)] if rows else [])
        while waiting:
            piece = waiting.popleft()
            if len(piece) > self.rows:
                waiting.extendleft([piece[self.rows :], piece[: self.rows]])
                continue
            made = self._try(piece, work)
            if made is None:
                waiting.appendleft(piece)
                continue
            yield piece, made[0]

    def _try(self, piece: list[int], work: Callable[[list[int]], R]) -> tuple[R] | None:
        """What `work` made; None if it ran out of memory, and then fewer rows are allowed from now on."""
        try:
            return (work(piece),)
        except torch.OutOfMemoryError as error:
            if len(piece) == 1:
                raise InputError(
                    f"the device's memory is too small for one row ({str(error).partition(' Tried')[0]}). Draft in "
                    "bf16, give a shorter model.response_length, or take a device with more memory"
                ) from error
        torch.cuda.empty_cache()  # after the except block, whose traceback held the tensors of the failed work
        self.rows = (len(piece) + 1) // 2
        self.halvings += 1
        self._tell(f"out of memory with {len(piece)} rows: {self.rows} at a time from here on")
        return None
