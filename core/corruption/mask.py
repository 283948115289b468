"""MaskCorruption, the mask-predict baseline: every response token becomes the mask with probability t (eq. 1 and 2).

Shapes: N samples, D draws, L positions of the response.
"""

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerBase

from core.corruption.captions import draw_meta, draw_prompts, encode_captions
from core.corruption.noise import base_kinds, fill_mask, masked, noise_levels
from core.corruption.responses import vocabulary
from core.corruption.rows import Corrupted, ResponseArrays, assemble
from core.corruption.settings import MaskSettings
from data_contracts import TokenKind


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
    captions, vocab = encode_captions(samples, tokenizer, response_length), vocabulary(tokenizer)
    keys_N, clean_NL = captions.keys("mask", seed), captions.clean_NL
    ignored_NL = fill_mask(clean_NL, vocab, settings)
    shape = (captions.samples.height, settings.draws, response_length)
    input_NDL, kinds_NDL = np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.int8)
    t_ND = np.empty(shape[:2], dtype=np.float32)
    for draw in range(settings.draws):
        t_ND[:, draw] = noise_levels(keys_N, draw, settings)
        masked_NL = masked(keys_N, draw, t_ND[:, draw], response_length) & ~ignored_NL
        input_NDL[:, draw] = np.where(masked_NL, np.int32(vocab.mask), clean_NL)
        kinds_NDL[:, draw] = base_kinds(masked_NL, ignored_NL)
    kinds_RL = kinds_NDL.reshape(-1, response_length)
    regions_RL = np.repeat(captions.regions_NL, settings.draws, axis=0)
    rows = ResponseArrays(
        input_NL=input_NDL.reshape(-1, response_length),
        target_NL=np.repeat(clean_NL, settings.draws, axis=0),
        kinds_NL=kinds_RL,
        regions_NL=np.where(kinds_RL == TokenKind.CLEAN, regions_RL, np.int16(-1)),
        t_N=t_ND.ravel(),
    )
    meta = draw_meta(captions, recipe="mask", draws=settings.draws, round_=round_)
    return Corrupted(
        examples=assemble(meta, draw_prompts(captions, settings.draws), rows, recipe="mask"),
        rejects=captions.rejects,
        rows_in=samples.height,
        rows_ok=captions.samples.height,
    )
