"""The order in which training rows are read.

Shapes: N rows of the dataset.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from core.seeds import rng


@dataclass(frozen=True, kw_only=True)
class DataOrder:
    """Which rows a step reads: a pure function of (seed, step). Epochs are permutations, put end to end.

    Every batch is full; one may hold the end of an epoch and the beginning of the next.
    """

    rows: int
    batch_size: int
    seed: int

    def steps(self, epochs: float) -> int:
        """Steps that read every row `epochs` times, rounded up."""
        return max(1, int(np.ceil(self.rows * epochs / self.batch_size)))

    def step(self, k: int) -> NDArray[np.int64]:
        """The rows of step k (from 0), (batch_size,)."""
        places = np.arange(k * self.batch_size, (k + 1) * self.batch_size)
        epochs, within = np.divmod(places, self.rows)
        picked = np.empty(self.batch_size, dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            picked[here] = _permutation(self.rows, self.seed, epoch)[within[here]]
        return picked


@dataclass(frozen=True, kw_only=True)
class ByLength:
    """As `plain`, but of the rows of `steps` steps in a row, those of similar length come together.

    The rows of a step stand in order of length; which of the steps comes first is drawn.
    """

    plain: DataOrder
    steps: int
    length_N: NDArray[np.int64]

    def step(self, k: int) -> NDArray[np.int64]:
        """The rows of step k (from 0), (batch_size,)."""
        number, within = divmod(k, self.steps)
        size = self.plain.batch_size
        rows = DataOrder(rows=self.plain.rows, batch_size=size * self.steps, seed=self.plain.seed).step(number)
        ranked = rows[np.argsort(self.length_N[rows], kind="stable")]
        place = int(rng("bucket", self.plain.seed, number).permutation(self.steps)[within])
        return ranked[place * size : (place + 1) * size]


@lru_cache(maxsize=4)
def _permutation(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return rng("data order", seed, epoch).permutation(rows)
