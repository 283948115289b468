"""RevisionCorruption, ReDiff Stage I: masks, then one injected hallucination, then syntax noise (eq. 1, 3 and 4).

Shapes: N samples, D draws, L positions of the response, P usable pairs.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from core.corruption.captions import Captions, draw_meta, draw_prompts, encode_captions
from core.corruption.noise import (
    CARRIES,
    PAIR,
    WHERE,
    base_kinds,
    draw_uniforms,
    fill_mask,
    masked,
    noise_levels,
    random_replacements,
)
from core.corruption.pairs import Injections, encode_pairs
from core.corruption.responses import Vocabulary, vocabulary
from core.corruption.rows import Corrupted, ResponseArrays, assemble
from core.corruption.settings import RevisionSettings
from data_contracts import TokenKind


@dataclass(frozen=True, kw_only=True)
class _Draw:
    """One draw of N rows; `pair_N` is an index into the usable pairs, -1 for none."""

    input_NL: NDArray[np.int32]
    kinds_NL: NDArray[np.int8]
    t_N: NDArray[np.float32]
    pair_N: NDArray[np.int64]


def revision_rows(
    samples: pl.DataFrame,
    pairs: pl.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    *,
    response_length: int,
    seed: int,
    settings: RevisionSettings,
    round_: int = 0,
) -> Corrupted:
    """Samples and HallucinationPairs -> `draws` examples a sample (recipe `revision`, origin `caption` or `pair`).

    A row in is a sample or a pair. A sample that is ok gives exactly `draws` examples, with or without pairs; a pair
    that is ok may be injected into them; a pair that is rejected never is.
    Input [M, blue, tall, EOS], target [a, red, ring, EOS], kinds [MASK, HALLUCINATION, SYNTAX, CLEAN].
    """
    captions, vocab = encode_captions(samples, tokenizer, response_length), vocabulary(tokenizer)
    injections = encode_pairs(captions, pairs, tokenizer)
    keys_N = captions.keys("revision", seed)
    drawn = [_corrupt(captions, injections, vocab, keys_N, draw, settings) for draw in range(settings.draws)]
    rows = _stack(captions, drawn)
    pair_R = np.stack([draw.pair_N for draw in drawn], axis=1).ravel()
    meta = draw_meta(captions, recipe="revision", draws=settings.draws, round_=round_)
    return Corrupted(
        examples=assemble(
            _with_pairs(meta, injections, pair_R), draw_prompts(captions, settings.draws), rows, recipe="revision"
        ),
        rejects=pl.concat([captions.rejects, injections.rejects]),
        rows_in=samples.height + pairs.height,
        rows_ok=captions.samples.height + len(injections.pair_ids),
    )


def _corrupt(
    captions: Captions,
    injections: Injections,
    vocab: Vocabulary,
    keys_N: NDArray[np.uint64],
    draw: int,
    settings: RevisionSettings,
) -> _Draw:
    """One draw: masks, hallucination, syntax noise, in this order; the later never touches the earlier."""
    clean_NL = captions.clean_NL
    length = clean_NL.shape[1]
    ignored_NL = fill_mask(clean_NL, vocab, settings)
    pair_N = _choose_pairs(injections, keys_N, draw, settings)
    bare_N = (pair_N >= 0) & (settings.pair_noise == "none")
    t_N = np.where(bare_N, np.float32(1.0), noise_levels(keys_N, draw, settings))
    masked_NL = masked(keys_N, draw, t_N, length) & ~ignored_NL & ~bare_N[:, None]
    input_NL, kinds_NL = clean_NL.copy(), base_kinds(masked_NL, ignored_NL)
    carrying = np.flatnonzero(pair_N >= 0)
    changed_CL = injections.changed_PL[pair_N[carrying]]
    inject_NL = np.zeros_like(masked_NL)
    inject_NL[carrying] = changed_CL != clean_NL[carrying]
    inject_NL &= kinds_NL == TokenKind.CLEAN
    input_NL[carrying] = np.where(inject_NL[carrying], changed_CL, input_NL[carrying])
    kinds_NL[inject_NL] = TokenKind.HALLUCINATION
    noise_NL = random_replacements(keys_N, draw, clean_NL, vocab, allow_original=settings.replacement == "ordinary")
    rate_N = np.full(len(t_N), settings.syntax_rate)
    if settings.syntax_schedule == "dynamic":
        rate_N = np.minimum(t_N, rate_N)
    hit_NL = draw_uniforms(keys_N, length, draw=draw, purpose=WHERE) < rate_N[:, None]
    hit_NL &= (kinds_NL == TokenKind.CLEAN) & (noise_NL != clean_NL) & ~bare_N[:, None]
    input_NL[hit_NL], kinds_NL[hit_NL] = noise_NL[hit_NL], TokenKind.SYNTAX
    input_NL[masked_NL] = vocab.mask
    return _Draw(input_NL=input_NL, kinds_NL=kinds_NL, t_N=t_N, pair_N=pair_N)


def _choose_pairs(
    injections: Injections, keys_N: NDArray[np.uint64], draw: int, settings: RevisionSettings
) -> NDArray[np.int64]:
    """The pair of each row, (N,), -1 for none. The draws of a sample go through its pairs from a random one on."""
    start_N = draw_uniforms(keys_N, 1, draw=0, purpose=PAIR)[:, 0] * injections.count_N
    turn_N = (start_N.astype(np.int64) + draw) % np.maximum(injections.count_N, 1)
    carries_N = draw_uniforms(keys_N, 1, draw=draw, purpose=CARRIES)[:, 0] < settings.pair_share
    return np.where(carries_N & (injections.count_N > 0), injections.first_N + turn_N, -1)


def _stack(captions: Captions, drawn: list[_Draw]) -> ResponseArrays:
    """The draws of a sample next to each other."""
    length = captions.clean_NL.shape[1]
    kinds_RL = np.stack([draw.kinds_NL for draw in drawn], axis=1).reshape(-1, length)
    regions_RL = np.repeat(captions.regions_NL, len(drawn), axis=0)
    return ResponseArrays(
        input_NL=np.stack([draw.input_NL for draw in drawn], axis=1).reshape(-1, length),
        target_NL=np.repeat(captions.clean_NL, len(drawn), axis=0),
        kinds_NL=kinds_RL,
        regions_NL=np.where(kinds_RL == TokenKind.CLEAN, regions_RL, np.int16(-1)),
        t_N=np.stack([draw.t_N for draw in drawn], axis=1).ravel(),
    )


def _with_pairs(meta: pl.DataFrame, injections: Injections, pair_R: NDArray[np.int64]) -> pl.DataFrame:
    """Origin `pair` and the pair among the parents, where a row carries one."""
    index = pl.Series(pair_R).replace(-1, None)
    return meta.with_columns(pair_id=injections.pair_ids.gather(index)).with_columns(
        origin=pl.when(pl.col("pair_id").is_null()).then(pl.lit("caption")).otherwise(pl.lit("pair")),
        parents=pl.when(pl.col("pair_id").is_null()).then("parents").otherwise(pl.concat_list("sample_id", "pair_id")),
    )
