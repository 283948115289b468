"""Confidence intervals by resampling scenes.

Shapes: S scenes, R resamples.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.seeds import rng

RESAMPLES = 1000
LEVEL = 0.95


def resample(scenes: int, seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """How often each scene is drawn in each resample, (R, S); every row sums to S."""
    return rng(seed, "bootstrap").multinomial(scenes, np.full(scenes, 1 / scenes), size=resamples).astype(np.float64)


def clusters(scene_ids: Sequence[str]) -> NDArray[np.int64]:
    """The index of each row's scene, by sorted name, (N,)."""
    return np.unique(np.asarray(scene_ids, dtype=str), return_inverse=True)[1].astype(np.int64)


def ratio_interval(
    numerator_S: NDArray[np.float64], denominator_S: NDArray[np.float64], times_RS: NDArray[np.float64]
) -> tuple[float, float]:
    """The central `LEVEL` interval of sum(numerator) / sum(denominator) over resamples of the scenes.

    A mean is such a ratio, its denominator counting the rows of each scene. Resamples without any denominator drop out.
    """
    below_R = times_RS @ denominator_S
    values_R = (times_RS @ numerator_S)[below_R > 0] / below_R[below_R > 0]
    low, high = np.quantile(values_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
