"""Where training rows come from, and what one process computes of a step.

Shapes: P rows of a part.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from core.training.batches import Batch
from core.training.parts import Part, is_whole
from core.training.settings import TrainSettings


class Batches(Protocol):
    """Where training rows come from."""

    def batch(self, step: int) -> Batch:
        """The rows of update `step` (from 0): always the same for the same step."""
        ...

    def part(self, step: int, places_P: NDArray[np.int64]) -> Batch:
        """Some of those rows, by their places among them."""
        ...

    def labels(self, step: int, places_P: NDArray[np.int64] | None = None) -> int:
        """Tokens of those rows, or of some, whose image region is known."""
        ...

    def shows(self, step: int) -> bool:
        """Whether any of those rows shows an image."""
        ...

    @property
    def pictured(self) -> bool:
        """Whether any row shows an image."""
        ...


@dataclass(frozen=True, kw_only=True)
class Share:
    """Rows that are computed together. Their loss, times `scale`, is their share of the step's."""

    batch: Batch
    scale: float
    grounding_weight: float


def shares(
    batches: Batches, step: int, parts: list[Part], settings: TrainSettings, grounding_weight: float
) -> Iterator[Share]:
    """What this process computes of a step, read when it is needed.

    A part's loss is a mean over its rows, and, for the region head, over its labelled tokens; a step's, over its own.
    """
    if is_whole(parts, settings.batch_size):
        yield Share(batch=batches.batch(step), scale=1.0, grounding_weight=grounding_weight)
        return
    labels = batches.labels(step) if grounding_weight > 0 else 0
    for part in parts:
        scale = len(part.places) / settings.batch_size if part.counts else 0.0
        own = batches.labels(step, part.places) if labels and part.counts else 0
        weight = grounding_weight * own / (labels * scale) if own else grounding_weight
        yield Share(batch=batches.part(step, part.places), scale=scale, grounding_weight=weight)
