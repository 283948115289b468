"""Noise: levels, masks and random replacements. Each value depends on (seed, sample, draw) alone.

Shapes: N rows of one draw, L positions of the response, K ordinary ids.
"""

import numpy as np
from numpy.typing import NDArray

from core.corruption.responses import Vocabulary
from core.corruption.settings import NoiseSettings
from core.seeds import uniforms
from data_contracts import TokenKind

LEVEL, MASKED, CARRIES, PAIR, WHERE, WHAT = range(6)
"""What a stream is for: they are independent of each other."""
_PURPOSES = 8


def draw_uniforms(keys_N: NDArray[np.uint64], n: int, *, draw: int, purpose: int) -> NDArray[np.float64]:
    """n uniforms a row, (N, n), for one purpose of one draw."""
    return uniforms(keys_N, n, salt=draw * _PURPOSES + purpose)


def noise_levels(keys_N: NDArray[np.uint64], draw: int, settings: NoiseSettings) -> NDArray[np.float32]:
    """t of one draw, (N,), in (t_min, 1]."""
    u_N = draw_uniforms(keys_N, 1, draw=draw, purpose=LEVEL)[:, 0]
    if settings.t_sampling == "stratified":
        u_N = (draw + u_N) / settings.draws
    return (1.0 - u_N * (1.0 - settings.t_min)).astype(np.float32)


def masked(keys_N: NDArray[np.uint64], draw: int, t_N: NDArray[np.float32], length: int) -> NDArray[np.bool_]:
    """Which positions are masked, (N, L): each with probability t of its row (eq. 1)."""
    return draw_uniforms(keys_N, length, draw=draw, purpose=MASKED) < t_N[:, None]


def fill_mask(clean_NL: NDArray[np.int32], vocab: Vocabulary, settings: NoiseSettings) -> NDArray[np.bool_]:
    """Positions that take no part: none, or all behind the first end-of-text under `fill: ignore`."""
    if settings.fill == "eos":
        return np.zeros(clean_NL.shape, dtype=np.bool_)
    is_end = np.isin(clean_NL, (vocab.eos, vocab.turn_end))
    return np.asarray((np.cumsum(is_end, axis=1) - is_end) > 0)


def random_replacements(
    keys_N: NDArray[np.uint64], draw: int, clean_NL: NDArray[np.int32], vocab: Vocabulary, *, allow_original: bool
) -> NDArray[np.int32]:
    """A replacement for every token, (N, L): uniform over the ordinary ids, without the original unless allowed."""
    u_NL = draw_uniforms(keys_N, clean_NL.shape[1], draw=draw, purpose=WHAT)
    size = len(vocab.ordinary_K)
    if allow_original:
        return np.asarray(vocab.ordinary_K[(u_NL * size).astype(np.int64)])
    rank_NL = np.searchsorted(vocab.ordinary_K, clean_NL)
    is_ordinary_NL = vocab.ordinary_K[np.minimum(rank_NL, size - 1)] == clean_NL
    choice_NL = (u_NL * (size - is_ordinary_NL)).astype(np.int64)
    choice_NL += is_ordinary_NL & (choice_NL >= rank_NL)  # skip over the original
    return np.asarray(vocab.ordinary_K[choice_NL])


def base_kinds(masked_NL: NDArray[np.bool_], ignored_NL: NDArray[np.bool_]) -> NDArray[np.int8]:
    """MASK where masked, PAD where ignored, CLEAN elsewhere."""
    kinds_NL = np.where(masked_NL, np.int8(TokenKind.MASK), np.int8(TokenKind.CLEAN))
    return np.where(ignored_NL, np.int8(TokenKind.PAD), kinds_NL).astype(np.int8)
