"""Hallucination pairs -> token ids that can be injected into their sample's caption, position by position.

Shapes: N usable samples, L positions of the response, Q pairs in, P usable pairs (sorted by sample, then pair id).
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from core.corruption.captions import Captions
from core.corruption.responses import encode_responses
from core.corruption.rows import reject_frame


@dataclass(frozen=True, kw_only=True)
class Injections:
    """Usable pairs: response ids of the changed captions; sample n owns the pairs first_N[n] .. + count_N[n]."""

    pair_ids: pl.Series
    changed_PL: NDArray[np.int32]
    first_N: NDArray[np.int64]
    count_N: NDArray[np.int64]
    rejects: pl.DataFrame


def encode_pairs(captions: Captions, pairs: pl.DataFrame, tokenizer: PreTrainedTokenizerBase) -> Injections:
    """Encode the changed captions of HallucinationPairs and keep the pairs that fit token by token.

    Rejects: sample_missing (rejected itself, or absent), caption_mismatch (the pair is not of this caption),
    empty, unknown_token and special_token (in the changed caption), pair_length_mismatch (the replaced chars have
    another number of tokens, or tokens outside of them change), pair_no_change.
    """
    owners = captions.samples.select("sample_id", "reference").with_row_index("owner")
    table = pairs.join(owners, on="sample_id", how="left").sort("owner", "pair_id", nulls_last=True)
    response_length = captions.clean_NL.shape[1]
    changed = encode_responses(tokenizer, table["changed_caption"].to_list(), response_length)
    owner_Q = table["owner"].fill_null(0).to_numpy().astype(np.int64)
    missing_Q = table["owner"].is_null().to_numpy()
    foreign_Q = (table["original_caption"] != table["reference"]).fill_null(False).to_numpy()
    misfit_Q, same_Q = np.zeros(len(owner_Q), dtype=np.bool_), np.zeros(len(owner_Q), dtype=np.bool_)
    if captions.samples.height:
        differs_QL = changed.ids_NL != captions.clean_NL[owner_Q]
        in_span_QL = (captions.start_NL[owner_Q] < table["end"].to_numpy()[:, None]) & (
            captions.end_NL[owner_Q] > table["start"].to_numpy()[:, None]
        )
        length_Q = (captions.start_NL >= 0).sum(axis=1)[owner_Q]
        misfit_Q = (changed.length_N != length_Q) | (differs_QL & ~in_span_QL).any(axis=1)
        same_Q = ~differs_QL.any(axis=1)
    of_text_Q = pl.Series([None if r == "too_long" else r for r in changed.reason_N], dtype=pl.String)
    reasons = pl.select(
        pl.when(pl.Series(missing_Q)).then(pl.lit("sample_missing"))
        .when(pl.Series(foreign_Q)).then(pl.lit("caption_mismatch"))
        .when(of_text_Q.is_not_null()).then(of_text_Q)
        .when(pl.Series(misfit_Q)).then(pl.lit("pair_length_mismatch"))
        .when(pl.Series(same_Q)).then(pl.lit("pair_no_change"))
        .alias("reason")
    )["reason"]  # fmt: skip
    good_Q = reasons.is_null().to_numpy()
    bad = table.with_columns(reason=reasons).filter(pl.Series(~good_Q))
    details = bad["solution_original"] + " -> " + bad["solution_target"]
    count_N = np.bincount(owner_Q[good_Q], minlength=captions.samples.height).astype(np.int64)
    return Injections(
        pair_ids=table["pair_id"].filter(pl.Series(good_Q)),
        changed_PL=changed.ids_NL[good_Q],
        first_N=np.cumsum(count_N) - count_N,
        count_N=count_N,
        rejects=reject_frame(bad["pair_id"].to_list(), bad["reason"].to_list(), details.to_list()),
    )
