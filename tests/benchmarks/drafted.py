"""Drafts of paragraphs and what an expert made of them, with several corrected segments each, for the benchmarks."""

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerBase

from core.corruption.responses import encode_responses, prompt_ids, vocabulary
from core.seeds import rng
from data_contracts import Drafts, Revisions
from tests.benchmarks.paragraphs import PROMPT, samples_and_pairs

_DIFFERENT = 500
"""Different drafts; more are these again under other ids."""
_PER_STEP = 4


def drafts_and_revisions(
    count: int, tokenizer: PreTrainedTokenizerBase, response_length: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`count` Drafts and their Revisions: a run of two tokens is wrong at three to six places of each draft."""
    texts = samples_and_pairs(_DIFFERENT)[0]["reference"].to_list()
    encoded, vocab = encode_responses(tokenizer, texts, response_length), vocabulary(tokenizer)
    rows, revisions = [], []
    for index, text in enumerate(texts):
        draws = rng("drafted", index)
        target = encoded.ids_NL[index]
        words = int(encoded.length_N[index]) // 2
        starts = np.sort(draws.permutation(words)[: draws.integers(3, 7)]) * 2
        draft = target.copy()
        wrong = np.concatenate([starts, starts + 1])
        draft[wrong] = vocab.ordinary_K[draws.integers(0, 1000, len(wrong))]
        rows.append(_draft(text, tokenizer, draft.tolist(), encoded.start_NL[index].tolist(), draws))
        revisions.append(_revision(target.tolist(), text, starts.tolist()))
    drafts, revised = _again(rows, Drafts, count), _again(revisions, Revisions, count)
    return Drafts.validate(drafts), Revisions.validate(revised)


def _draft(
    text: str, tokenizer: PreTrainedTokenizerBase, token_ids: list[int], starts: list[int], draws: np.random.Generator
) -> dict[str, object]:
    order = draws.permutation(len(token_ids)).tolist()
    return {
        "prompt": PROMPT,
        "reference": text,
        "prompt_ids": prompt_ids(tokenizer, PROMPT),
        "token_ids": token_ids,
        "text": tokenizer.decode(token_ids, skip_special_tokens=True),
        "char_start": starts,
        "char_end": starts,
        "writes": [
            {"step": place // _PER_STEP, "position": position, "token": token_ids[position]}
            for place, position in enumerate(order)
        ],
        "setting": f"{_PER_STEP} refine",
        "tokens_per_step": _PER_STEP,
        "extra_steps": 0,
        "policy": "refine",
        "nfe": len(token_ids) // _PER_STEP,
        "model_digest": "benchmark",
        "round": 1,
    }


def _revision(target: list[int], text: str, starts: list[int]) -> dict[str, object]:
    segments = [
        {"org": "wrong words", "target": "right words", "reason": None, "tier": "equal"}
        | {"char_start": start, "char_end": start + 2, "token_start": start, "token_end": start + 2}
        for start in starts
    ]
    return {
        "request_key": "0" * 64,
        "prompt_version": "revise-v1",
        "verdict": "revised",
        "segments": segments,
        "target_ids": target,
        "refined_text": text,
        "raw_reply": "Right words stand where wrong words stood." * len(segments),
    }


def _again(rows: list[dict[str, object]], contract: type[Drafts] | type[Revisions], count: int) -> pl.DataFrame:
    """`count` rows that keep the contract: the rows given, repeated under other ids."""
    schema = contract.create_empty().schema
    frame = pl.DataFrame(rows, schema={name: dtype for name, dtype in schema.items() if not name.endswith("_id")})
    number = pl.int_range(pl.len())
    return (
        frame[np.arange(count) % len(rows)]
        .with_columns(sample_id=pl.format("paragraph-{}", number), draft_id=pl.format("draft-{}", number))
        .select(schema.names())
    )
