"""Noise: levels, masks and random replacements. Each value depends on (seed, sample, draw) alone.

Shapes: N rows of one draw, L positions of the response, T single positions of any rows, K ordinary ids.
"""

import numpy as np
from numpy.typing import NDArray

from core.corruption.responses import Vocabulary
from core.corruption.settings import NoiseSettings
from core.seeds import chances, uniforms, uniforms_at
from data_contracts import TokenKind

LEVEL, MASKED, CARRIES, PAIR, WHERE, WHAT = range(6)
"""What a stream is for: they are independent of each other."""
_PURPOSES = 8


def draw_uniforms(keys_N: NDArray[np.uint64], n: int, *, draw: int, purpose: int) -> NDArray[np.float64]:
    """n uniforms a row, (N, n), for one purpose of one draw."""
    return uniforms(keys_N, n, salt=draw * _PURPOSES + purpose)


def draw_chances(
    keys_N: NDArray[np.uint64], n: int, p_N: NDArray[np.floating], *, draw: int, purpose: int
) -> NDArray[np.bool_]:
    """n events a row, (N, n), each with the row's probability, for one purpose of one draw."""
    return chances(keys_N, n, p_N, salt=draw * _PURPOSES + purpose)


def noise_levels(keys_N: NDArray[np.uint64], draw: int, settings: NoiseSettings) -> NDArray[np.float32]:
    """t of one draw, (N,), in (t_min, 1]."""
    u_N = draw_uniforms(keys_N, 1, draw=draw, purpose=LEVEL)[:, 0]
    if settings.t_sampling == "stratified":
        u_N = (draw + u_N) / settings.draws
    return (1.0 - u_N * (1.0 - settings.t_min)).astype(np.float32)


def masked(keys_N: NDArray[np.uint64], draw: int, t_N: NDArray[np.float32], length: int) -> NDArray[np.bool_]:
    """Which positions are masked, (N, L): each with probability t of its row (eq. 1)."""
    return draw_chances(keys_N, length, t_N, draw=draw, purpose=MASKED)


def fill_mask(clean_NL: NDArray[np.int32], vocab: Vocabulary, settings: NoiseSettings) -> NDArray[np.bool_] | None:
    """Positions that take no part: none (None), or all behind the first end-of-text under `fill: ignore`."""
    if settings.fill == "eos":
        return None
    is_end = np.isin(clean_NL, (vocab.eos, vocab.turn_end))
    return np.asarray((np.cumsum(is_end, axis=1) - is_end) > 0)


def random_replacements(
    keys_T: NDArray[np.uint64],
    place_T: NDArray[np.int64],
    clean_T: NDArray[np.int32],
    draw: int,
    vocab: Vocabulary,
    *,
    allow_original: bool,
) -> NDArray[np.int32]:
    """A replacement for each of the tokens `clean_T` that stand at `place_T` of their responses, (T,).

    Uniform over the ordinary ids, without the original unless allowed.
    """
    u_T = uniforms_at(keys_T, place_T, salt=draw * _PURPOSES + WHAT)
    size = len(vocab.ordinary_K)
    if allow_original:
        return np.asarray(vocab.ordinary_K[(u_T * size).astype(np.int64)])
    rank_T = np.searchsorted(vocab.ordinary_K, clean_T)
    is_ordinary_T = vocab.ordinary_K[np.minimum(rank_T, size - 1)] == clean_T
    choice_T = (u_T * (size - is_ordinary_T)).astype(np.int64)
    choice_T += is_ordinary_T & (choice_T >= rank_T)  # skip over the original
    return np.asarray(vocab.ordinary_K[choice_T])


def hide(clean_NL: NDArray[np.int32], masked_NL: NDArray[np.bool_], mask: int) -> NDArray[np.int32]:
    """The mask where masked, the clean token elsewhere. Arithmetic, for np.where takes twice as long."""
    return np.asarray((np.int32(mask) - clean_NL) * masked_NL + clean_NL)


def base_kinds(masked_NL: NDArray[np.bool_], ignored_NL: NDArray[np.bool_] | None) -> NDArray[np.int8]:
    """MASK where masked, PAD where ignored, CLEAN elsewhere. Arithmetic, for np.where takes six times as long."""
    kinds_NL = masked_NL.view(np.int8) * np.int8(TokenKind.MASK - TokenKind.CLEAN) + np.int8(TokenKind.CLEAN)
    if ignored_NL is not None:
        kinds_NL[ignored_NL] = TokenKind.PAD
    return kinds_NL


def places(where_NL: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and position of every True, (T,) each: np.nonzero, at a fifth of its time."""
    row_T, place_T = np.divmod(np.flatnonzero(where_NL), where_NL.shape[1])
    return row_T, place_T
