"""Samples -> clean, encoded captions that can be corrupted; and the columns that every draw of a sample shares.

Shapes: N usable samples, L positions of the response.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from core.corruption.responses import Prompts, encode_prompts, encode_responses
from core.corruption.rows import reject_frame, token_regions
from core.seeds import stream_keys


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The usable samples: their rows, prompts, clean response ids, char offsets and image regions; and the rejects.

    `regions_NL` is None where no sample's grounding is known.
    """

    samples: pl.DataFrame
    prompts: Prompts
    clean_NL: NDArray[np.int32]
    start_NL: NDArray[np.int32]
    end_NL: NDArray[np.int32]
    regions_NL: NDArray[np.int16] | None
    rejects: pl.DataFrame

    def keys(self, recipe: str, seed: int) -> NDArray[np.uint64]:
        """One random stream a sample, (N,)."""
        return stream_keys((recipe, seed), self.samples["sample_id"].to_list())


def encode_captions(samples: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, response_length: int) -> Captions:
    """Encode prompts and references (Samples rows). Rejects: those of texts (empty, too_long, unknown_token,
    special_token) and of prompts."""
    prompts = encode_prompts(
        tokenizer, samples["prompt"], response_length, with_image=samples["image_sha"].is_not_null()
    )
    responses = encode_responses(tokenizer, samples["reference"].to_list(), response_length)
    prompt_reasons = [prompts.reason_P[index] for index in prompts.index_N]
    reasons = [mine or of_prompt for mine, of_prompt in zip(responses.reason_N, prompt_reasons, strict=True)]
    good_N = np.array([reason is None for reason in reasons], dtype=np.bool_)
    bad = np.flatnonzero(~good_N).tolist()
    ids = samples["sample_id"].to_list()
    rejects = reject_frame(
        [ids[row] for row in bad],
        [reasons[row] or "" for row in bad],
        [responses.detail_N[row] or "in the prompt" for row in bad],
    )
    usable = samples.filter(pl.Series(good_N))
    start_NL, end_NL = responses.start_NL[good_N], responses.end_NL[good_N]
    return Captions(
        samples=usable,
        prompts=Prompts(ids_P=prompts.ids_P, index_N=prompts.index_N[good_N], reason_P=prompts.reason_P),
        clean_NL=responses.ids_NL[good_N],
        start_NL=start_NL,
        end_NL=end_NL,
        regions_NL=token_regions(usable["grounding"], start_NL, end_NL) if usable["grounding"].count() else None,
        rejects=rejects,
    )


def draw_meta(captions: Captions, *, recipe: str, draws: int, round_: int) -> pl.DataFrame:
    """The columns of `draws` examples a sample, the draws of a sample next to each other (origin: caption)."""
    frame = captions.samples.select(
        "sample_id", "image_sha", grounded=pl.col("grounding").is_not_null(), parents=pl.concat_list("sample_id")
    )
    repeated = frame[np.repeat(np.arange(frame.height), draws)]
    draw = pl.Series(np.tile(np.arange(draws), frame.height))
    return repeated.with_columns(
        example_id=pl.format("{}/{}/{}", "sample_id", pl.lit(recipe), draw),
        origin=pl.lit("caption"),
        round=pl.lit(round_, dtype=pl.Int16),
    )


def draw_prompts(captions: Captions, draws: int) -> Prompts:
    """The prompts of `draws` examples a sample."""
    prompts = captions.prompts
    return Prompts(ids_P=prompts.ids_P, index_N=np.repeat(prompts.index_N, draws), reason_P=prompts.reason_P)
