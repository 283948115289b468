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
    """The writes of N drafts in order; `steps_N` counts the forwards up to a draft's last write."""

    row_W: NDArray[np.int64]
    step_W: NDArray[np.int64]
    position_W: NDArray[np.int64]
    token_W: NDArray[np.int32]
    steps_N: NDArray[np.int64]
    mask: int

    def states(self, steps_N: NDArray[np.int64], length: int) -> NDArray[np.int32]:
        """The response of each draft after its first `steps_N` forwards, (N, length): 0 gives masks alone.

        Writes (step, position, token) (0, 2, 7), (1, 0, 5) with M = 1 and length 3: after 1 forward [1, 1, 7],
        after 2 [5, 1, 7].
        """
        states_NL = np.full((len(steps_N), length), self.mask, dtype=np.int32)
        done_W = self.step_W < steps_N[self.row_W]
        # writes stand in order, and the last assignment to a repeated index wins
        states_NL[self.row_W[done_W], self.position_W[done_W]] = self.token_W[done_W]
        return states_NL


def read_decodings(draft_NL: NDArray[np.int32], writes: pl.Series, mask: int) -> Decodings:
    """Flatten the `writes` column of Drafts.

    Raises:
        InputError: replaying all writes does not give the draft.
    """
    table = pl.DataFrame({"row": np.arange(len(writes)), "write": writes}).filter(pl.col("write").list.len() > 0)
    table = table.explode("write").with_columns(pl.col("write").struct.unnest())
    row_W, step_W = table["row"].to_numpy(), table["step"].to_numpy().astype(np.int64)
    steps_N = np.zeros(len(writes), dtype=np.int64)
    np.maximum.at(steps_N, row_W, step_W + 1)
    decodings = Decodings(
        row_W=row_W,
        step_W=step_W,
        position_W=table["position"].to_numpy().astype(np.int64),
        token_W=table["token"].to_numpy(),
        steps_N=steps_N,
        mask=mask,
    )
    if (decodings.states(steps_N, draft_NL.shape[1]) != draft_NL).any():
        raise InputError("a draft's `writes` do not lead to its `token_ids`: these drafts have no usable trajectory")
    return decodings
