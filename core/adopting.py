"""Drafts that came as text -> Drafts: written in the tokens of the model's tokenizer, with the place of each.

    Corrections(question="Describe.", answer="A red ring.", draft="A blue ring.")
    -> Drafts(prompt="Describe.", reference="A red ring.", text="A blue ring.", token_ids=[..., <eos>, ...], ...)

How such a draft was decoded is not known: its setting is "adopted", and it has no writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from core.alignment import TextCodec
from core.corruption.rows import reject_frame
from core.errors import InputError, RowError
from core.ingest.reading import PLACEHOLDER
from data_contracts import Drafts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SETTING = "adopted"
POLICY = "unknown"


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """Frame Drafts; `rejects` with row_id (the correction_id), outcome, reason, detail. Both together: all rows."""

    drafts: pl.DataFrame
    rejects: pl.DataFrame


def adopt(
    corrections: pl.DataFrame,
    references: Mapping[str, str],
    *,
    tokenizer: "PreTrainedTokenizerBase",
    response_length: int,
    model_digest: str,
) -> Adopted:
    """One draft for each row of Corrections, or a reject: no_answer, special_token.

    Args:
        references: sample_id -> a correct answer, for corrections without an answer of their own.
        response_length: tokens of a response, end-of-text fill included; a longer draft has one such token at its end.
        model_digest: what tells whose tokens these are.

    Raises:
        InputError: the tokenizer has no end-of-text token, or tells no offsets.
    """
    try:
        codec = TextCodec.of(tokenizer)
    except ValueError as error:
        raise InputError(f"the tokenizer cannot be used: {error}") from error
    drafts, rejected = list[dict[str, Any]](), list[tuple[str, RowError]]()
    for row in corrections.iter_rows(named=True):
        try:
            reference = row["answer"] or references.get(row["sample_id"] or "", "")
            drafts.append(_draft(row, reference, codec, response_length) | {"model_digest": model_digest})
        except RowError as error:
            rejected.append((row["correction_id"], error))
    return Adopted(
        drafts=pl.DataFrame(drafts, schema=Drafts.create_empty().schema),
        rejects=reject_frame(
            [row_id for row_id, _ in rejected],
            [error.reason for _, error in rejected],
            [error.detail for _, error in rejected],
        ),
    )


def _draft(row: dict[str, Any], reference: str, codec: TextCodec, response_length: int) -> dict[str, Any]:
    """Raises RowError: no_answer, special_token."""
    if not reference.strip():
        raise RowError("no_answer", "nothing says what a correct answer is")
    text, prompt = row["draft"], row["question"].replace(PLACEHOLDER, "").strip()
    ids, spans = codec.encode(text)
    if found := codec.forbidden_ids.intersection(ids):
        raise RowError("special_token", f"the draft holds {codec.tokenizer.convert_ids_to_tokens(sorted(found))}")
    fill = max(response_length - len(ids), 1)
    return {
        "draft_id": row["correction_id"],
        "sample_id": row["sample_id"] or row["correction_id"],
        "image_sha": row["image_sha"],
        "prompt": prompt or "Describe the image.",
        "reference": reference,
        "prompt_ids": codec.encode(prompt)[0],
        "token_ids": [*ids, *[codec.eos_id] * fill],
        "text": text,
        "char_start": [*(start for start, _ in spans), *[-1] * fill],
        "char_end": [*(end for _, end in spans), *[-1] * fill],
        "writes": [],
        "setting": SETTING,
        "tokens_per_step": 1,
        "extra_steps": 0,
        "policy": POLICY,
        "nfe": 1,
        "round": 0,
    }
