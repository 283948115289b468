"""What happened during a decoding: the log of writes and its replay. core.metrics.traces measures it.

Shapes: B rows, L tokens, W writes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.decoding.state import Canvas, View

_COLUMNS = ("row", "step", "position", "old", "new")


class Recorder:
    """Collects every changed token as tensors on the model's device; `frame` brings them over once."""

    def __init__(self) -> None:
        self._indices: list[Tensor] = []
        self._confidences: list[Tensor] = []

    def record(self, view: View, after: Canvas, rows_B: Tensor) -> None:
        """Log the difference between `view` and `after`; rows_B are the rows' numbers in the original batch."""
        row_W, column_W = (after.ids_BL != view.ids_BL).nonzero(as_tuple=True)
        self._indices.append(
            torch.stack(
                [
                    rows_B[row_W],
                    torch.full_like(row_W, view.step.index),
                    column_W - after.offset_B[row_W],
                    view.ids_BL[row_W, column_W],
                    after.ids_BL[row_W, column_W],
                ]
            )
        )
        self._confidences.append(view.confidence_BL[row_W, column_W])

    def frame(self) -> pl.DataFrame:
        """Columns row, step, position, old, new (int64) and confidence (float32), by row, step and position.

        confidence is the softmax probability of the argmax there when the write was made.
        """
        if not self._indices:
            return pl.DataFrame(schema=dict.fromkeys(_COLUMNS, pl.Int64) | {"confidence": pl.Float32})
        columns_5W = torch.cat(self._indices, dim=1).cpu().numpy()
        columns = dict(zip(_COLUMNS, columns_5W, strict=True))
        confidence_W = torch.cat(self._confidences).cpu().numpy()
        return pl.DataFrame(columns | {"confidence": confidence_W}).sort("row", "step", "position")


def replay(
    writes: Iterable[Mapping[str, Any]], *, response_length: int, mask_id: int, steps: int | None = None
) -> NDArray[np.int32]:
    """The response after the first `steps` forwards (all of them if None), from a draft's `writes`.

    E.g. writes [(0, 2, 7), (1, 0, 5)] as (step, position, token), length 3, M = 1: steps 0 -> [1, 1, 1],
    1 -> [1, 1, 7], None -> [5, 1, 7].
    """
    ids = np.full(response_length, mask_id, dtype=np.int32)
    for write in writes:
        if steps is None or write["step"] < steps:
            ids[write["position"]] = write["token"]
    return ids
