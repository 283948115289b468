"""Confidence intervals by resampling scenes, and, over several trainings, seeds and scenes.

Shapes: S scenes, R resamples, K seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
    return central(values_R)


@dataclass(frozen=True, kw_only=True)
class NestedResamples:
    """Resamples of K seeds, and within each drawn seed of its S scenes: the same for every arm, so that arms pair up.

    seed_RK: which seed each of the K places of a resample holds. times_RKS: how often each scene of it is drawn.
    """

    seed_RK: NDArray[np.int64]
    times_RKS: NDArray[np.float64]

    @classmethod
    def draw(cls, seeds: int, scenes: int, resamples: int = RESAMPLES) -> "NestedResamples":
        """Draw them; always the same ones for the same numbers."""
        stream = rng("nested bootstrap", seeds, scenes)
        times_RKS = stream.multinomial(scenes, np.full(scenes, 1 / scenes), size=(resamples, seeds))
        return cls(seed_RK=stream.integers(seeds, size=(resamples, seeds)), times_RKS=times_RKS.astype(np.float64))

    def means(self, scores_KS: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean over seeds and scenes in each resample, (R,)."""
        scenes = scores_KS.shape[1]
        sums_RK = np.einsum("rks,rks->rk", self.times_RKS, scores_KS[self.seed_RK])
        means_R: NDArray[np.float64] = sums_RK.mean(axis=1) / scenes
        return means_R


def central(values_R: NDArray[np.float64]) -> tuple[float, float]:
    """The central `LEVEL` interval of a bootstrapped value."""
    low, high = np.quantile(values_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def p_value(differences_R: NDArray[np.float64]) -> float:
    """Two-sided bootstrap p of "the difference is 0": twice the smaller tail, at least 2 / (R + 1)."""
    resamples = len(differences_R)
    tail = min((differences_R <= 0).sum(), (differences_R >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (resamples + 1)))
