"""MaskCorruption, the mask-predict baseline: every response token becomes the mask with probability t (eq. 1 and 2).

Shapes: N samples, D draws, L positions of the response.
"""

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerBase

from core.corruption.blocks import over_blocks
from core.corruption.captions import Captions, draw_meta, draw_prompts, encode_captions
from core.corruption.noise import base_kinds, fill_mask, hide, masked, noise_levels
from core.corruption.responses import Vocabulary, vocabulary
from core.corruption.rows import Corrupted, ResponseArrays, assemble, visible_regions
from core.corruption.settings import MaskSettings


def mask_rows(
    samples: pl.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    *,
    response_length: int,
    seed: int,
    settings: MaskSettings,
    round_: int = 0,
) -> Corrupted:
    """Samples -> `draws` masked examples each (recipe `mask`). A row in is a sample.

    Input [M, red, M, EOS], target [a, red, ring, EOS], kinds [MASK, CLEAN, MASK, CLEAN] (prompt left out).
    """
    captions = encode_captions(samples, tokenizer, response_length)
    return Corrupted(
        examples=mask_captions(captions, vocabulary(tokenizer), seed=seed, settings=settings, round_=round_),
        rejects=captions.rejects,
        rows_in=samples.height,
        rows_ok=captions.samples.height,
    )


def mask_captions(
    captions: Captions, vocab: Vocabulary, *, seed: int, settings: MaskSettings, round_: int = 0
) -> pl.DataFrame:
    """Encoded captions -> TrainingExamples: what `mask_rows` does once the text is tokens."""
    keys_N, clean_NL = captions.keys("mask", seed), captions.clean_NL
    count, length = clean_NL.shape
    input_NDL = np.empty((count, settings.draws, length), dtype=np.int32)
    kinds_NDL = np.empty(input_NDL.shape, dtype=np.int8)
    t_ND = np.empty((count, settings.draws), dtype=np.float32)

    def corrupt(block: slice) -> None:
        ignored_NL = fill_mask(clean_NL[block], vocab, settings)
        for draw in range(settings.draws):
            t_ND[block, draw] = noise_levels(keys_N[block], draw, settings)
            masked_NL = masked(keys_N[block], draw, t_ND[block, draw], length)
            if ignored_NL is not None:
                masked_NL &= ~ignored_NL
            input_NDL[block, draw] = hide(clean_NL[block], masked_NL, vocab.mask)
            kinds_NDL[block, draw] = base_kinds(masked_NL, ignored_NL)

    over_blocks(count, length, corrupt)
    kinds_RL = kinds_NDL.reshape(-1, length)
    rows = ResponseArrays(
        input_NL=input_NDL.reshape(-1, length),
        target_NL=np.repeat(clean_NL, settings.draws, axis=0),
        kinds_NL=kinds_RL,
        regions_NL=visible_regions(captions.regions_NL, kinds_RL, settings.draws),
        t_N=t_ND.ravel(),
    )
    meta = draw_meta(captions, recipe="mask", draws=settings.draws, round_=round_)
    return assemble(meta, draw_prompts(captions, settings.draws), rows, recipe="mask")
