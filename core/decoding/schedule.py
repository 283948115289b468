"""What is revealed when.

Shapes: B rows, L tokens.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from core.decoding.noise import REVEALS, position_keys, uniforms
from core.decoding.quotas import DreamTimes, Even, Quotas
from core.decoding.state import Step, View

GRID_BITS = 16
"""Confidences are ranked in units of 2^-16. Saturated softmaxes differ by rounding noise alone, and that noise depends
on the batch; on this grid they tie, and ties go to the leftmost position whatever the batch."""


def most_confident(
    confidence_BL: Tensor, *, among_BL: Tensor, count_B: Tensor | int, grid_bits: int = GRID_BITS
) -> Tensor:
    """(B, L) bool: in each row the `count_B` positions of `among_BL` with the highest confidence, or all if fewer."""
    rank_BL = torch.round(confidence_BL * 2.0**grid_bits).masked_fill(~among_BL, -torch.inf)
    order_BL = rank_BL.sort(dim=1, descending=True, stable=True).indices
    if isinstance(count_B, Tensor):
        count_B = count_B[:, None]
    taken_BL = (torch.arange(order_BL.shape[1], device=order_BL.device) < count_B).expand_as(order_BL)
    return torch.zeros_like(among_BL).scatter(1, order_BL, taken_BL) & among_BL


class Schedule(Protocol):
    """Plans the forwards of a decoding and chooses what each of them reveals."""

    def plan(self, response_length: int, given: int = 0) -> tuple[Step, ...]:
        """Every forward, in order, for `response_length` tokens of which the first `given` are no masks."""
        ...

    def reveals(self, step: Step) -> bool:
        """Whether it may reveal anything in this step of the plan; if not, and nothing is revised, it is left out."""
        ...

    def choose(self, view: View) -> Tensor:
        """(B, L) bool: the masked positions to reveal in this step."""
        ...


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Which part of a response is decoded when.

    tokens_per_step: a block with b masks takes ceil(b / tokens_per_step) steps. steps: instead, so many for the whole
    response, shared equally by its blocks (rounded up). block_length: None: the response is one block. extra_steps
    follow with the whole response in scope and nothing to reveal.
    """

    tokens_per_step: int | None = None
    steps: int | None = None
    block_length: int | None = None
    extra_steps: int = 0

    def parts(self, response_length: int, given: int) -> Iterator[tuple[int, int, int, int]]:
        """Start, end, masks and steps of every block that has a mask."""
        block = min(self.block_length or response_length, response_length)
        blocks = math.ceil(response_length / block)
        for start in range(0, response_length, block):
            end = min(start + block, response_length)
            masks = end - max(start, min(given, end))
            if masks and self.steps is not None:
                yield start, end, masks, math.ceil(self.steps / blocks)
            elif masks:
                yield start, end, masks, math.ceil(masks / (self.tokens_per_step or 1))

    def extra_plan(self, first: int, response_length: int) -> tuple[Step, ...]:
        """The extra steps, numbered from `first`."""
        whole = Step(index=first, start=0, end=response_length, quota=0, local=0, steps=self.extra_steps, extra=True)
        return tuple(replace(whole, index=first + local, local=local) for local in range(self.extra_steps))


@dataclass(frozen=True, kw_only=True)
class ConfidenceSchedule:
    """Reveals the most confident masks (ReDiff 3.4a; LLaDA's low-confidence remasking; Dream's maskgit_plus).

    grid_bits: confidences that agree when rounded to 2^-grid_bits tie, and ties go to the left.
    """

    blocks: Blocks
    quotas: Quotas = field(default_factory=Even)
    grid_bits: int = GRID_BITS

    def plan(self, response_length: int, given: int = 0) -> tuple[Step, ...]:
        """E.g. 7 tokens at 3 a step: quotas 3, 2, 2."""
        plan: list[Step] = []
        for start, end, masks, steps in self.blocks.parts(response_length, given):
            for local, quota in enumerate(self.quotas.split(masks, steps)):
                plan.append(
                    Step(index=len(plan), start=start, end=end, quota=quota, local=local, steps=steps, masked=masks)
                )
                masks -= quota
        return (*plan, *self.blocks.extra_plan(len(plan), response_length))

    def reveals(self, step: Step) -> bool:
        """Its quota."""
        return step.quota > 0

    def choose(self, view: View) -> Tensor:
        """The step's quota of masks with the highest confidence."""
        return most_confident(
            view.confidence_BL, among_BL=view.masked_BL, count_B=view.step.quota, grid_bits=self.grid_bits
        )


@dataclass(frozen=True, kw_only=True)
class ThresholdSchedule:
    """Approximate, for speed: besides the quota of `within`, every mask whose confidence is `threshold` or more.

    A row may so be done before its plan is; it never takes more forwards than the plan has steps (Fast-dLLM, with a
    quota of one).
    """

    within: ConfidenceSchedule
    threshold: float

    def plan(self, response_length: int, given: int = 0) -> tuple[Step, ...]:
        """That of `within`; how many masks are left, nobody knows beforehand."""
        return tuple(replace(step, masked=None) for step in self.within.plan(response_length, given))

    def reveals(self, step: Step) -> bool:
        """Whatever the quota: a confidence may have risen to the threshold."""
        return not step.extra

    def choose(self, view: View) -> Tensor:
        """Quota or more."""
        return self.within.choose(view) | (view.masked_BL & (view.confidence_BL >= self.threshold))


class Draws(Protocol):
    """Where `OriginSchedule` has its chance from."""

    def of(self, view: View) -> Tensor:
        """(B, L) numbers in [0, 1), used where `view.masked_BL`."""
        ...


@dataclass(frozen=True, kw_only=True)
class StreamDraws:
    """From the rows' own streams."""

    def of(self, view: View) -> Tensor:
        """(B, L)."""
        keys_BL = position_keys(view.canvas, view.step)
        return uniforms(keys_BL.flatten(), 1, salt=REVEALS).view_as(keys_BL)


@dataclass(frozen=True, kw_only=True)
class OriginSchedule:
    """Reveals each mask by chance, with the probability 1 - s / t; in a block's last step all (Dream's `origin`)."""

    blocks: Blocks
    times: DreamTimes = field(default_factory=DreamTimes)
    draws: Draws = field(default_factory=StreamDraws)

    def plan(self, response_length: int, given: int = 0) -> tuple[Step, ...]:
        """A step's quota is what it is expected to reveal, at least 1."""
        plan: list[Step] = []
        for start, end, masks, steps in self.blocks.parts(response_length, given):
            left = float(masks)
            for local, rate in enumerate(self.times.rates(steps)):
                quota = max(1, round(left * rate))
                plan.append(Step(index=len(plan), start=start, end=end, quota=quota, local=local, steps=steps))
                left -= left * rate
        return (*plan, *self.blocks.extra_plan(len(plan), response_length))

    def reveals(self, step: Step) -> bool:
        """By chance."""
        return not step.extra

    def choose(self, view: View) -> Tensor:
        """Masks whose number is below the step's rate; none in an extra step."""
        if view.step.extra:
            return torch.zeros_like(view.masked_BL)
        rate = self.times.rates(view.step.steps)[view.step.local]
        return view.masked_BL & (self.draws.of(view) < rate)
