"""What becomes of visible tokens.

Shapes: B rows, L tokens.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from core.decoding.schedule import GRID_BITS, most_confident
from core.decoding.state import Step, View


class Policy(Protocol):
    """Says per visible position: keep, write another token, or re-mask. It must depend on the view alone."""

    def looks(self, step: Step) -> bool:
        """Whether it needs predictions at visible positions in this step; if not, the lm_head leaves them out."""
        ...

    def act(self, view: View) -> Tensor:
        """(B, L) the token each visible position shall hold: its own = KEEP, the mask = REMASK, another = WRITE."""
        ...


@dataclass(frozen=True, kw_only=True)
class Freeze:
    """What is visible stays: mask-predict."""

    def looks(self, step: Step) -> bool:
        """Never."""
        del step
        return False

    def act(self, view: View) -> Tensor:
        """Keep everything."""
        return view.canvas.ids_BL


@dataclass(frozen=True, kw_only=True)
class Refine:
    """Overwrites visible tokens by their argmax (ReDiff 3.4b).

    start: only in the last ceil(steps * start) steps of a block; extra steps always refine. topk: only the
    int(topk * visible) positions of highest new confidence. margin: only where p(new) - p(old) >= margin. grid_bits:
    see `most_confident`.
    """

    start: float = 1.0
    topk: float = 1.0
    margin: float = 0.0
    grid_bits: int = GRID_BITS

    def looks(self, step: Step) -> bool:
        """From step steps - ceil(steps * start) of a block on."""
        return step.extra or step.local >= step.steps - math.ceil(step.steps * self.start)

    def act(self, view: View) -> Tensor:
        """Write the argmax at the visible positions that pass; keep the others."""
        if not self.looks(view.step):
            return view.canvas.ids_BL
        chosen_BL = view.visible_BL
        if self.topk < 1:
            count_B = (view.visible_BL.sum(dim=1).double() * self.topk).long()
            chosen_BL = most_confident(
                view.confidence_BL, among_BL=chosen_BL, count_B=count_B, grid_bits=self.grid_bits
            )
        if self.margin > 0:
            chosen_BL = chosen_BL & (view.confidence_BL - view.held_BL >= self.margin)
        return torch.where(chosen_BL, view.predicted_BL, view.canvas.ids_BL)
