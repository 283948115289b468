"""The next rows are read while the step computes: reading, decoding and preprocessing do not hold a training up.

Shapes: P rows of a part.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from core.training.batches import Batch
from core.training.parts import Part
from core.training.shares import Batches

_Read = tuple[int, NDArray[np.int64] | None]
"""A step, and the places of its rows; None: all of them."""


class Ahead:
    """Rows read one part ahead by a thread of their own. They depend on step and places alone: only the time changes.

    with Ahead(batches, steps=settings.steps) as prepared:
        train(model, prepared, settings)

    An error in reading is raised where what was read is asked for. However the training ends, the thread ends with the
    block, at the latest when it has read what it is reading.

    Args:
        batches: what reads; rows are asked of it by the thread alone.
        steps: steps of the training: nothing is read beyond.
        parts: what is asked for in every step, in this order, if not the whole batch.
    """

    def __init__(self, batches: Batches, *, steps: int, parts: Sequence[Part] = ()) -> None:
        self.waited_s = 0.0
        """Seconds that steps have waited for their rows, the first ones included."""
        self._batches, self._steps = batches, steps
        self._places: list[NDArray[np.int64] | None] = [part.places for part in parts] or [None]
        self._step, self._turn = -1, 0
        self._thread = ThreadPoolExecutor(1, "next batch")
        self._next: tuple[_Read, Future[Batch]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._next = None

    @property
    def pictured(self) -> bool:
        """Whether any row shows an image."""
        return self._batches.pictured

    def shows(self, step: int) -> bool:
        """Whether any row of a step shows an image."""
        return self._batches.shows(step)

    def labels(self, step: int, places_P: NDArray[np.int64] | None = None) -> int:
        """Tokens of the rows of a step, or of some of them, whose image region is known."""
        return self._batches.labels(step, places_P)

    def batch(self, step: int) -> Batch:
        """The rows of update `step` (from 0); begins to read the next."""
        return self._read((step, None))

    def part(self, step: int, places_P: NDArray[np.int64]) -> Batch:
        """Some of those rows, by their places among them; begins to read the next part."""
        return self._read((step, places_P))

    def _read(self, read: _Read) -> Batch:
        found = self._next[1] if self._next is not None and _same(self._next[0], read) else self._submit(read)
        started = time.perf_counter()
        batch = found.result()
        self.waited_s += time.perf_counter() - started
        self._turn = self._turn + 1 if read[0] == self._step else 1
        self._step = read[0]
        turn = self._turn % len(self._places)
        following = (self._step + (turn == 0), self._places[turn])
        self._next = (following, self._submit(following)) if following[0] < self._steps else None
        return batch

    def _submit(self, read: _Read) -> Future[Batch]:
        step, places_P = read
        if places_P is None:
            return self._thread.submit(self._batches.batch, step)
        return self._thread.submit(self._batches.part, step, places_P)


def _same(one: _Read, other: _Read) -> bool:
    if one[1] is None or other[1] is None:
        return one[0] == other[0] and one[1] is other[1]
    return one[0] == other[0] and np.array_equal(one[1], other[1])
