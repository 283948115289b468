"""How a step's rows are dealt to processes and micro-batches.

Shapes: B rows of a step, P of a part.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Part:
    """Places within a step's batch, (P,). One that does not count is computed and weighs nothing.

    All processes must compute equally often: one that has run out of rows repeats a row.
    """

    places: NDArray[np.int64]
    counts: bool = True


def parts_of(batch_size: int, *, micro_batch: int, rank: int = 0, world: int = 1) -> list[Part]:
    """The parts that process `rank` of `world` computes of every step, up to `micro_batch` rows each (0: any number).

    Row i goes to process i modulo world: where rows are ordered by length, all get long and short ones.
    """
    dealt = [np.arange(process, batch_size, world) for process in range(world)]
    size = micro_batch or len(dealt[0])
    count = -(-len(dealt[0]) // size)
    own = [Part(places=dealt[rank][first : first + size]) for first in range(0, len(dealt[rank]), size)]
    idle = Part(places=np.zeros(1, dtype=np.int64), counts=False)
    return own + [idle] * (count - len(own))


def is_whole(parts: list[Part], batch_size: int) -> bool:
    """Whether the parts are the step as it is: one process, no micro-batches."""
    return len(parts) == 1 and len(parts[0].places) == batch_size
