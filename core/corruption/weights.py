"""The loss weight of every token, computed from kinds, t and recipe when a batch is collated. numpy alone.

Shapes: B rows, L tokens (prompt and padding included; they weigh 0).
The objective sums weight x cross-entropy and divides by the number of rows, so the means over kinds stand here.
"""

import numpy as np
from numpy.typing import NDArray

from core.corruption.settings import ObjectiveSettings
from data_contracts import TokenKind

_VISIBLE_KINDS = (TokenKind.SYNTAX, TokenKind.HALLUCINATION, TokenKind.CLEAN)


def token_weights(
    kinds_BL: NDArray[np.int8], t_B: NDArray[np.float32], recipe_B: NDArray[np.str_], settings: ObjectiveSettings
) -> NDArray[np.float32]:
    """The weight of every token, (B, L), by the row's recipe: `mask` (eq. 2), `revision` (eq. 3), `refine` (eq. 5).

    Sums of a row: mask N_mask/(t L); revision 1/t for each kind that is present; refine 1. Prompt and padding weigh 0.
    """
    weights_BL = np.zeros(kinds_BL.shape, dtype=np.float64)
    for recipe, weigh in (("mask", _mask), ("revision", _revision), ("refine", _refine)):
        rows = np.flatnonzero(recipe_B == recipe)
        if len(rows):
            weights_BL[rows] = weigh(kinds_BL[rows], t_B[rows].astype(np.float64), settings)
    return weights_BL.astype(np.float32)


def _mask(kinds_BL: NDArray[np.int8], t_B: NDArray[np.float64], settings: ObjectiveSettings) -> NDArray[np.float64]:
    """Eq. 2, as a mean over the L response tokens."""
    factor_B = 1.0 / (np.ones_like(t_B) if settings.noise_weight == "none" else t_B)
    return np.asarray((kinds_BL == TokenKind.MASK) * (factor_B / _response_length(kinds_BL))[:, None])


def _revision(kinds_BL: NDArray[np.int8], t_B: NDArray[np.float64], settings: ObjectiveSettings) -> NDArray[np.float64]:
    """Eq. 3 and 4: unit coefficients."""
    if settings.noise_weight == "elbo":
        visible_BL = np.isin(kinds_BL, _VISIBLE_KINDS)
        weights_BL = (kinds_BL == TokenKind.MASK) / t_B[:, None] + visible_BL
        weights_BL /= _response_length(kinds_BL)[:, None]
    else:
        shares = [_share(kinds_BL == kind, settings) for kind in (TokenKind.MASK, *_VISIBLE_KINDS)]
        weights_BL = np.sum(shares, axis=0)
        if settings.noise_weight == "inverse_t":
            weights_BL /= t_B[:, None]
    if settings.pair_loss == "span":
        injected_BL = kinds_BL == TokenKind.HALLUCINATION
        weights_BL *= injected_BL | ~injected_BL.any(axis=1, keepdims=True)
    return np.asarray(weights_BL * settings.revision_scale)


def _refine(kinds_BL: NDArray[np.int8], t_B: NDArray[np.float64], settings: ObjectiveSettings) -> NDArray[np.float64]:
    """Eq. 5, or the mean over all response tokens; never 1/t."""
    if settings.refine_scope == "mistakes":
        return _share(kinds_BL == TokenKind.MISTAKE, settings)
    return np.asarray(_in_response(kinds_BL) / _response_length(kinds_BL)[:, None])


def _share(of_kind_BL: NDArray[np.bool_], settings: ObjectiveSettings) -> NDArray[np.float64]:
    """1/N_kind where `of_kind_BL`: N_kind of the row, or the mean of the batch's rows."""
    count_B = of_kind_BL.sum(axis=1)
    if settings.kind_count == "batch":
        count_B = np.full(len(count_B), count_B.sum() / len(count_B))
    return np.asarray(of_kind_BL / np.where(count_B > 0, count_B, 1.0)[:, None])


def _in_response(kinds_BL: NDArray[np.int8]) -> NDArray[np.bool_]:
    return np.asarray((kinds_BL != TokenKind.PROMPT) & (kinds_BL != TokenKind.PAD))


def _response_length(kinds_BL: NDArray[np.int8]) -> NDArray[np.float64]:
    """L of each row, (B,)."""
    return np.asarray(np.maximum(_in_response(kinds_BL).sum(axis=1), 1), dtype=np.float64)
