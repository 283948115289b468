"""What is revealed when.

Shapes: B rows, L tokens.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from core.decoding.state import Step, View

# Confidences are ranked in units of 2^-16. Saturated softmaxes differ by rounding noise alone, and that noise depends
# on the batch; on this grid they tie, and ties go to the leftmost position whatever the batch.
_GRID = 2.0**16


def most_confident(confidence_BL: Tensor, *, among_BL: Tensor, count_B: Tensor) -> Tensor:
    """(B, L) bool: in each row the `count_B` positions of `among_BL` with the highest confidence, or all if fewer."""
    rank_BL = torch.round(confidence_BL * _GRID).masked_fill(~among_BL, -1.0)
    order_BL = rank_BL.sort(dim=1, descending=True, stable=True).indices
    taken_BL = torch.arange(order_BL.shape[1], device=order_BL.device) < count_B[:, None]
    return torch.zeros_like(among_BL).scatter(1, order_BL, taken_BL) & among_BL


class Schedule(Protocol):
    """Plans the forwards of a decoding and chooses what each of them reveals."""

    def plan(self, response_length: int) -> tuple[Step, ...]:
        """Every forward, in order."""
        ...

    def choose(self, view: View) -> Tensor:
        """(B, L) bool: the masked positions to reveal in this step."""
        ...


@dataclass(frozen=True, kw_only=True)
class ConfidenceSchedule:
    """Reveals the most confident masks (ReDiff 3.4a; LLaDA's low-confidence remasking).

    A block of b tokens takes s = ceil(b / tokens_per_step) steps that reveal b // s tokens each, the first b % s of
    them one more (as published). `extra_steps` follow with the whole response in scope and nothing to reveal.
    """

    tokens_per_step: int
    extra_steps: int = 0
    block_length: int | None = None

    def plan(self, response_length: int) -> tuple[Step, ...]:
        """E.g. 7 tokens at 3 a step: quotas 3, 2, 2."""
        block = min(self.block_length or response_length, response_length)
        plan: list[Step] = []
        for start in range(0, response_length, block):
            end = min(start + block, response_length)
            steps = math.ceil((end - start) / self.tokens_per_step)
            share, rest = divmod(end - start, steps)
            for local in range(steps):
                quota = share + (local < rest)
                plan.append(Step(index=len(plan), start=start, end=end, quota=quota, local=local, steps=steps))
        steps = self.extra_steps
        for local in range(steps):
            plan.append(Step(index=len(plan), start=0, end=response_length, quota=0, local=local, steps=steps))
        return tuple(plan)

    def choose(self, view: View) -> Tensor:
        """The step's quota of masks with the highest confidence; ties go to the left."""
        count_B = torch.full((view.ids_BL.shape[0],), view.step.quota, device=view.ids_BL.device)
        return most_confident(view.confidence_BL, among_BL=view.masked_BL, count_B=count_B)
