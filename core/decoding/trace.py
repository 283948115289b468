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
    """Keeps every state of the responses as tensors on the model's device; `frame` brings them over once."""

    def __init__(self) -> None:
        self._length = 0
        self._steps: list[tuple[int, Tensor, Tensor, Tensor, Tensor]] = []

    def begin(self, canvas: Canvas, *, length: int, mask_id: int) -> None:
        """Log what stands in the responses of `length` tokens before the first step, as written in step -1."""
        ids_BR = canvas.responses(length)
        blank_BR, sure_BR = torch.full_like(ids_BR, mask_id), torch.ones(ids_BR.shape, device=ids_BR.device)
        self._steps.append((-1, torch.arange(len(ids_BR)), blank_BR, ids_BR, sure_BR))
        self._length = length

    def record(self, view: View, after: Canvas, rows_B: Tensor) -> None:
        """Log the difference between `view` and `after`; rows_B are the rows' numbers in the original batch."""
        length = self._length
        columns_BR = after.offset_B[:, None] + torch.arange(length, device=rows_B.device)
        confidence_BR = view.confidence_BL.gather(1, columns_BR)
        old_BR, new_BR = view.canvas.responses(length), after.responses(length)
        self._steps.append((view.step.index, rows_B, old_BR, new_BR, confidence_BR))

    def frame(self) -> pl.DataFrame:
        """Columns row, step, position, old, new (int64) and confidence (float32), by row, step and position.

        confidence is the softmax probability of the argmax there when the write was made. What was given is a write
        in step -1, with confidence 1.
        """
        frames = [pl.DataFrame(schema=dict.fromkeys(_COLUMNS, pl.Int64) | {"confidence": pl.Float32})]
        for step, *tensors in self._steps:
            rows_B, old_BR, new_BR, confidence_BR = (tensor.cpu().numpy() for tensor in tensors)
            row_W, position_W = np.nonzero(old_BR != new_BR)
            at = (row_W, position_W)
            columns = (rows_B[row_W], np.full_like(row_W, step), position_W, old_BR[at], new_BR[at])
            frames.append(pl.DataFrame(dict(zip(_COLUMNS, columns, strict=True)) | {"confidence": confidence_BR[at]}))
        return pl.concat(frames).sort("row", "step", "position")


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
