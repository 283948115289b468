"""Partial states of a decoding, rebuilt from the log of a draft's writes.

Shapes: N drafts, L positions of the response, W writes of all drafts together, C states asked for.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Decodings:
    """The writes of N drafts in order; `place_W` is a position of the drafts one after another, row x L + position.

    `count_N` counts a draft's writes, `steps_N` the forwards up to its last one.
    """

    place_W: NDArray[np.int64]
    step_W: NDArray[np.int16]
    token_W: NDArray[np.int32]
    count_N: NDArray[np.int64]
    steps_N: NDArray[np.int64]
    length: int
    mask: int

    def states(self, steps_N: NDArray[np.int64]) -> NDArray[np.int32]:
        """The response of each draft after its first `steps_N` forwards, (N, L): 0 gives masks alone.

        Writes (step, position, token) (0, 2, 7), (1, 0, 5) with M = 1 and length 3: after 1 forward [1, 1, 7],
        after 2 [5, 1, 7].
        """
        nowhere = len(steps_N) * self.length
        flat = np.full(nowhere + 1, self.mask, dtype=np.int32)
        done_W = self.step_W < np.repeat(steps_N, self.count_N)
        # writes stand in order, and the last assignment to a repeated index wins
        flat[np.where(done_W, self.place_W, nowhere)] = self.token_W
        return flat[:nowhere].reshape(len(steps_N), self.length)


def read_decodings(draft_NL: NDArray[np.int32], writes: pl.Series, mask: int) -> Decodings:
    """Flatten the `writes` column of Drafts.

    Raises:
        InputError: replaying all writes does not give the draft.
    """
    rows, length = draft_NL.shape
    count_N = writes.list.len().fill_null(0).to_numpy().astype(np.int64)
    flat = writes.explode(empty_as_null=False, keep_nulls=False).struct
    row_W = np.repeat(np.arange(rows), count_N)
    step_W = flat.field("step").to_numpy()
    steps_N = np.zeros(rows, dtype=np.int64)
    np.maximum.at(steps_N, row_W, step_W.astype(np.int64) + 1)
    decodings = Decodings(
        place_W=row_W * length + flat.field("position").to_numpy(),
        step_W=step_W,
        token_W=flat.field("token").to_numpy(),
        count_N=count_N,
        steps_N=steps_N,
        length=length,
        mask=mask,
    )
    if (decodings.states(steps_N) != draft_NL).any():
        raise InputError("a draft's `writes` do not lead to its `token_ids`: these drafts have no usable trajectory")
    return decodings
