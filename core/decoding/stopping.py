"""Stop words: where a response ends before its last token.

Shapes: B rows, L tokens of the canvas, R tokens of a response.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.decoding.state import Canvas


@dataclass(frozen=True, kw_only=True)
class StopWords:
    """Ends a response before the first stop word, once nothing before it is masked (as published).

    A stop word counts from the step that completes it, even if a later one revises it; an earlier one counts instead.
    From it on, a finished response is filled with `end`. words: token ids of each.
    """

    words: tuple[tuple[int, ...], ...]
    end: int

    def apply(self, canvas: Canvas, *, mask_id: int) -> Canvas:
        """The canvas with `stop_B` found, and finished rows filled."""
        stop_B = torch.minimum(canvas.stop_B, self._first(canvas))
        found = replace(canvas, stop_B=stop_B)
        after_BL = canvas.position() >= stop_B[:, None]
        waiting_B = (canvas.editable_BL & (canvas.ids_BL == mask_id) & ~after_BL).any(dim=1)
        beyond_BL = canvas.editable_BL & after_BL & ~waiting_B[:, None]
        return replace(found, ids_BL=canvas.ids_BL.masked_fill(beyond_BL, self.end))

    def _first(self, canvas: Canvas) -> Tensor:
        """(B,) where the first stop word of each row begins in its response; a large number without one."""
        begins_BL = torch.zeros_like(canvas.editable_BL)
        for word in self.words:
            here_BL = canvas.editable_BL
            for offset, token in enumerate(word):
                same_BL = canvas.editable_BL & (canvas.ids_BL == token)
                here_BL = here_BL & torch.nn.functional.pad(same_BL, (0, offset))[:, offset:]
            begins_BL = begins_BL | here_BL
        return canvas.position().masked_fill(~begins_BL, canvas.ids_BL.shape[1]).min(dim=1).values
