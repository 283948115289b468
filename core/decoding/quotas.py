"""How many masks each step of a block reveals: the published plans."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch


class Quotas(Protocol):
    """Shares the masks of a block out among its steps."""

    def split(self, masks: int, steps: int) -> tuple[int, ...]:
        """Masks that each step reveals; they add up to `masks`. Fewer than `steps` entries: no step is left out."""
        ...


@dataclass(frozen=True, kw_only=True)
class Even:
    """masks // steps each, and one more in the first masks % steps of them (LLaDA, LLaDA-V, ReDiff)."""

    def split(self, masks: int, steps: int) -> tuple[int, ...]:
        """E.g. 7 masks in 3 steps: 3, 2, 2. 2 masks in 3 steps: 1, 1; the block is done then."""
        share, rest = divmod(masks, steps)
        return tuple(share + (step < rest) for step in range(steps) if share or step < rest)


@dataclass(frozen=True, kw_only=True)
class Linear:
    """What is left over the steps left, rounded half to even in float32; steps that reveal nothing fall out (dllm)."""

    def split(self, masks: int, steps: int) -> tuple[int, ...]:
        """E.g. 5 masks in 2 steps: 2, 3."""
        times = (torch.arange(steps, -1, -1, dtype=torch.float64) / steps).float()
        masked = 1 - (1 - times)  # 1 - alpha(t): in float32 not t itself, and a half rounds up or down by it
        rates: list[float] = (1 - masked[1:] / masked[:-1]).tolist()
        quotas: list[int] = []
        for rate in rates:
            left = masks - sum(quotas)
            quotas.append(min(round(left * rate), left))
        return tuple(quota for quota in quotas if quota)


@dataclass(frozen=True, kw_only=True)
class DreamTimes:
    """int(what is left * (1 - s / t)) for times from 1 down to `eps`, and all that is left in the last step (Dream)."""

    eps: float = 1e-3

    def rates(self, steps: int) -> tuple[float, ...]:
        """Of what is left, the share that each step reveals; the last one reveals all."""
        return _dream_rates(steps, self.eps)

    def split(self, masks: int, steps: int) -> tuple[int, ...]:
        """E.g. 4 masks in 8 steps: 0, 0, 0, 0, 0, 1, 1, 2; a step may reveal nothing."""
        quotas: list[int] = []
        for rate in self.rates(steps):
            quotas.append(int((masks - sum(quotas)) * rate))
        return tuple(quotas)


@lru_cache
def _dream_rates(steps: int, eps: float) -> tuple[float, ...]:
    times = torch.linspace(1, eps, steps + 1, dtype=torch.float32).tolist()
    return (*(1 - times[step + 1] / times[step] for step in range(steps - 1)), 1.0)
