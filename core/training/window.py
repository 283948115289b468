"""The means of a training's metrics between two reports, over the parts of a step, its processes, and steps."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from torch import Tensor

Values = dict[str, float]
Gather = Callable[[list[list[Values]]], list[list[list[Values]]]]
"""What each process measured: steps x parts -> processes x steps x parts."""


def alone(steps: list[list[Values]]) -> list[list[list[Values]]]:
    """Of one process."""
    return [steps]


class Totals(TypedDict):
    """Sums of a window's metrics, times their weights, and the sums of those. JSON keeps it as it is."""

    sums: Values
    weights: Values


@dataclass
class Window:
    """Metrics since it was made; tensors become numbers when means or totals are asked for, and not before.

    One made of another's totals goes on with it: its means have the bits that the other's would have had.
    """

    before: Totals = field(default_factory=lambda: Totals(sums={}, weights={}))
    steps: list[list[Mapping[str, Tensor]]] = field(default_factory=list)
    shared: list[Mapping[str, Tensor]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def add(self, parts: Sequence[Mapping[str, Tensor]], shared: Mapping[str, Tensor]) -> None:
        """One step: what its parts measured in this process, and what is the same in all of them."""
        self.steps.append(list(parts))
        self.shared.append(shared)

    def means(self, gather: Gather = alone) -> Values:
        """Means over the steps; those of a kind of token are weighted by how many tokens were of it.

        `loss` is the sum over a step's parts. Of `weight/*`, whose quantiles cannot be joined, the parts' mean is
        taken, and the largest of `weight/max`.
        """
        took = max(time.monotonic() - self.started, 1e-9)
        totals = self.totals(gather)
        rate = len(self.steps) / took
        means = {name: total / totals["weights"][name] for name, total in totals["sums"].items()}
        return means | {"steps_per_second": rate}

    def totals(self, gather: Gather = alone) -> Totals:
        """What another window needs to go on with this one."""
        measured = gather([[_numbers(part) for part in parts] for parts in self.steps])
        sums, weights = dict(self.before["sums"]), dict(self.before["weights"])
        for number, shared in enumerate(self.shared):
            metrics = _joined([part for process in measured for part in process[number]]) | _numbers(shared)
            for name, value in metrics.items():
                weight = _tokens(name, metrics) or 1.0
                sums[name] = sums.get(name, 0.0) + weight * value
                weights[name] = weights.get(name, 0.0) + weight
        return Totals(sums=sums, weights=weights)


def _numbers(metrics: Mapping[str, Tensor]) -> Values:
    return {name: float(value) for name, value in metrics.items()}


def _tokens(name: str, metrics: Mapping[str, float]) -> float | None:
    """How many tokens a mean of a kind is over; None for any other metric."""
    group, _, kind = name.partition("/")
    return metrics.get(f"count/{kind}") if group in ("ce", "accuracy") else None


def _joined(parts: Sequence[Values]) -> Values:
    """The metrics of a step from those of its parts."""
    if len(parts) == 1:
        return parts[0]
    joined: Values = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        having = [part for part in parts if name in part]
        values = [part[name] for part in having]
        if name == "loss" or name.startswith("count/"):
            joined[name] = sum(values)
        elif name == "weight/max":
            joined[name] = max(values)
        else:
            weights = [_tokens(name, part) or 1.0 for part in having]
            joined[name] = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    return joined
