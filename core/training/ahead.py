"""The next batch is made while the step computes: reading, decoding and preprocessing do not hold a training up."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from core.training.batches import Batch
from core.training.loop import Batches


class Ahead:
    """Batches made one step ahead by a thread of their own. A batch depends on its step alone: only the time changes.

    with Ahead(batches, steps=settings.steps) as prepared:
        train(model, prepared, settings)

    An error in making a batch is raised where that batch is asked for. However the training ends, the thread ends with
    the block, at the latest when the batch that it is making is done.

    Args:
        batches: what makes them; only the thread calls it.
        steps: steps of the training: no batch is made beyond.
    """

    def __init__(self, batches: Batches, *, steps: int) -> None:
        self.waited_s = 0.0
        """Seconds that steps have waited for their batch, the first one included."""
        self._batches, self._steps = batches, steps
        self._thread = ThreadPoolExecutor(1, "next batch")
        self._made: dict[int, Future[Batch]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._made.clear()

    def batch(self, step: int) -> Batch:
        """The rows of update `step` (from 0); begins to make those of the next."""
        made = self._made.pop(step, None) or self._thread.submit(self._batches.batch, step)
        started = time.perf_counter()
        batch = made.result()
        self.waited_s += time.perf_counter() - started
        self._made.clear()
        if step + 1 < self._steps:
            self._made[step + 1] = self._thread.submit(self._batches.batch, step + 1)
        return batch
