"""RevisionCorruption, ReDiff Stage I: masks, then one injected hallucination, then syntax noise (eq. 1, 3 and 4).

Shapes: N samples, D draws, R = N x D rows, L positions of the response, P usable pairs, C rows of a block that carry
one, T single tokens.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from core.corruption.blocks import over_blocks
from core.corruption.captions import Captions, draw_meta, draw_prompts, encode_captions
from core.corruption.noise import (
    CARRIES,
    PAIR,
    WHERE,
    base_kinds,
    draw_chances,
    draw_uniforms,
    fill_mask,
    hide,
    masked,
    noise_levels,
    places,
    random_replacements,
)
from core.corruption.pairs import Injections, encode_pairs
from core.corruption.responses import Vocabulary, vocabulary
from core.corruption.rows import Corrupted, ResponseArrays, assemble, visible_regions
from core.corruption.settings import RevisionSettings
from data_contracts import TokenKind


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
    captions = encode_captions(samples, tokenizer, response_length)
    injections = encode_pairs(captions, pairs, tokenizer)
    vocab = vocabulary(tokenizer)
    return Corrupted(
        examples=revise_captions(captions, injections, vocab, seed=seed, settings=settings, round_=round_),
        rejects=pl.concat([captions.rejects, injections.rejects]),
        rows_in=samples.height + pairs.height,
        rows_ok=captions.samples.height + len(injections.pair_ids),
    )


def revise_captions(
    captions: Captions,
    injections: Injections,
    vocab: Vocabulary,
    *,
    seed: int,
    settings: RevisionSettings,
    round_: int = 0,
) -> pl.DataFrame:
    """Encoded captions and pairs -> TrainingExamples: what `revision_rows` does once the text is tokens."""
    count, length = captions.clean_NL.shape
    work = _Work(
        clean_NL=captions.clean_NL,
        keys_N=captions.keys("revision", seed),
        injections=injections,
        vocab=vocab,
        settings=settings,
        input_NDL=np.empty((count, settings.draws, length), dtype=np.int32),
        kinds_NDL=np.empty((count, settings.draws, length), dtype=np.int8),
        t_ND=np.empty((count, settings.draws), dtype=np.float32),
        pair_ND=np.empty((count, settings.draws), dtype=np.int64),
    )
    over_blocks(count, length, work.corrupt)
    kinds_RL = work.kinds_NDL.reshape(-1, length)
    rows = ResponseArrays(
        input_NL=work.input_NDL.reshape(-1, length),
        target_NL=np.repeat(captions.clean_NL, settings.draws, axis=0),
        kinds_NL=kinds_RL,
        regions_NL=visible_regions(captions.regions_NL, kinds_RL, settings.draws),
        t_N=work.t_ND.ravel(),
    )
    meta = draw_meta(captions, recipe="revision", draws=settings.draws, round_=round_)
    meta = _with_pairs(meta, injections, work.pair_ND.ravel())
    return assemble(meta, draw_prompts(captions, settings.draws), rows, recipe="revision")


@dataclass(frozen=True, kw_only=True)
class _Work:
    """The draws of N captions, written block by block; `pair_ND` is an index into the usable pairs, -1 for none."""

    clean_NL: NDArray[np.int32]
    keys_N: NDArray[np.uint64]
    injections: Injections
    vocab: Vocabulary
    settings: RevisionSettings
    input_NDL: NDArray[np.int32]
    kinds_NDL: NDArray[np.int8]
    t_ND: NDArray[np.float32]
    pair_ND: NDArray[np.int64]

    def corrupt(self, block: slice) -> None:
        """All draws of some rows: masks, hallucination, syntax noise, in this order; the later never touches the
        earlier."""
        ignored_NL = fill_mask(self.clean_NL[block], self.vocab, self.settings)
        for draw in range(self.settings.draws):
            bare_N = self._levels_and_pairs(block, draw)
            self._mask(block, draw, ignored_NL, bare_N)
            self._inject(block, draw)
            self._replace(block, draw, bare_N)

    def _levels_and_pairs(self, block: slice, draw: int) -> NDArray[np.bool_]:
        """Choose t and pair of each row. Which rows show a whole changed caption, at t = 1?"""
        keys_N, pair_N = self.keys_N[block], self._choose_pairs(block, draw)
        bare_N = (pair_N >= 0) & (self.settings.pair_noise == "none")
        self.pair_ND[block, draw] = pair_N
        self.t_ND[block, draw] = np.where(bare_N, np.float32(1.0), noise_levels(keys_N, draw, self.settings))
        return bare_N

    def _choose_pairs(self, block: slice, draw: int) -> NDArray[np.int64]:
        """The pair of each row, -1 for none. The draws of a sample go through its pairs from a random one on."""
        keys_N, first_N, count_N = self.keys_N[block], self.injections.first_N[block], self.injections.count_N[block]
        start_N = draw_uniforms(keys_N, 1, draw=0, purpose=PAIR)[:, 0] * count_N
        turn_N = (start_N.astype(np.int64) + draw) % np.maximum(count_N, 1)
        carries_N = draw_uniforms(keys_N, 1, draw=draw, purpose=CARRIES)[:, 0] < self.settings.pair_share
        return np.where(carries_N & (count_N > 0), first_N + turn_N, -1)

    def _mask(self, block: slice, draw: int, ignored_NL: NDArray[np.bool_] | None, bare_N: NDArray[np.bool_]) -> None:
        clean_NL = self.clean_NL[block]
        masked_NL = masked(self.keys_N[block], draw, self.t_ND[block, draw], clean_NL.shape[1])
        masked_NL[bare_N] = False
        if ignored_NL is not None:
            masked_NL &= ~ignored_NL
        self.input_NDL[block, draw] = hide(clean_NL, masked_NL, self.vocab.mask)
        self.kinds_NDL[block, draw] = base_kinds(masked_NL, ignored_NL)

    def _inject(self, block: slice, draw: int) -> None:
        """Show the words of the row's pair, where they differ and the row is CLEAN."""
        input_NL, kinds_NL, pair_N = self.input_NDL[block, draw], self.kinds_NDL[block, draw], self.pair_ND[block, draw]
        carrying_C = np.flatnonzero(pair_N >= 0)
        changed_CL = self.injections.changed_PL[pair_N[carrying_C]]
        shown_CL = (changed_CL != self.clean_NL[block][carrying_C]) & (kinds_NL[carrying_C] == TokenKind.CLEAN)
        carrier_T, place_T = places(shown_CL)
        row_T = carrying_C[carrier_T]
        input_NL[row_T, place_T] = changed_CL[carrier_T, place_T]
        kinds_NL[row_T, place_T] = TokenKind.HALLUCINATION

    def _replace(self, block: slice, draw: int, bare_N: NDArray[np.bool_]) -> None:
        """Syntax noise: replace a share of the CLEAN tokens at random."""
        settings, keys_N, clean_NL = self.settings, self.keys_N[block], self.clean_NL[block]
        input_NL, kinds_NL = self.input_NDL[block, draw], self.kinds_NDL[block, draw]
        rate_N = np.full(len(keys_N), settings.syntax_rate)
        if settings.syntax_schedule == "dynamic":
            rate_N = np.minimum(self.t_ND[block, draw], rate_N)
        rate_N[bare_N] = 0.0
        hit_NL = draw_chances(keys_N, clean_NL.shape[1], rate_N, draw=draw, purpose=WHERE)
        row_T, place_T = places(hit_NL & (kinds_NL == TokenKind.CLEAN))
        clean_T = clean_NL[row_T, place_T]
        allow_original = settings.replacement == "ordinary"
        noise_T = random_replacements(keys_N[row_T], place_T, clean_T, draw, self.vocab, allow_original=allow_original)
        new_T = noise_T != clean_T
        row_T, place_T = row_T[new_T], place_T[new_T]
        input_NL[row_T, place_T] = noise_T[new_T]
        kinds_NL[row_T, place_T] = TokenKind.SYNTAX


def _with_pairs(meta: pl.DataFrame, injections: Injections, pair_R: NDArray[np.int64]) -> pl.DataFrame:
    """Origin `pair` and the pair among the parents, where a row carries one."""
    index = pl.Series(pair_R).replace(-1, None)
    return meta.with_columns(pair_id=injections.pair_ids.gather(index)).with_columns(
        origin=pl.when(pl.col("pair_id").is_null()).then(pl.lit("caption")).otherwise(pl.lit("pair")),
        parents=pl.when(pl.col("pair_id").is_null()).then("parents").otherwise(pl.concat_list("sample_id", "pair_id")),
    )
