"""DraftRevision, ReDiff Stage II: the model's own drafts, and what the expert made of them (eq. 5).

Shapes: N usable drafts, D draws, R = N x D rows, L positions of the response, G drafts that speak of a region.
"""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from core.corruption.decodings import read_decodings
from core.corruption.responses import Prompts, encode_responses, mask_and_eos
from core.corruption.revised import Revised, read_revised
from core.corruption.rows import Corrupted, ResponseArrays, assemble, token_regions, visible_regions
from core.corruption.settings import RefineScope, RefineSettings
from core.seeds import stream_keys, uniforms
from data_contracts import Samples, TokenKind

Ground = Callable[[str, str], Sequence[dict[str, int]]]
"""(reference, text) -> grounding spans {start, end, region} of a text about the reference's image."""
_SHARE, _STEP = range(2)
_PURPOSES = 8


def draft_columns(settings: RefineSettings) -> list[str]:
    """The columns of Drafts that `refine_rows` reads: the largest, `writes`, only where it rebuilds partial states."""
    writes = ["writes"] if settings.input == "trajectory" else []
    return ["draft_id", "sample_id", "image_sha", "reference", "prompt_ids", "token_ids", "text", "round", *writes]


def refine_rows(
    drafts: pl.DataFrame,
    revisions: pl.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    scope: RefineScope,
    settings: RefineSettings,
    ground: Ground | None = None,
) -> Corrupted:
    """Drafts and their Revisions -> `draws` examples a draft (recipe `refine`).

    A row in is a draft (its `draft_columns` are enough), or a revision without one; rejects are those of
    `core.corruption.revised`.
    The target is the expert's text, all end-of-text from its first end-of-text on. Kinds: MASK where the input is
    masked, MISTAKE where it differs from the target, CLEAN elsewhere. t is the share of masked positions.
    Draft [a, blue, ring, EOS], revised to red: target [a, red, ring, EOS], kinds [CLEAN, MISTAKE, CLEAN, CLEAN].

    `ground`, if given, finds the image regions that the expert's text speaks of.
    """
    mask, eos = mask_and_eos(tokenizer)
    revised = read_revised(drafts, revisions, eos, scope=scope, keep_partial=settings.keep_partial)
    input_RL = _inputs(revised, mask, seed, scope, settings)
    target_RL = np.repeat(revised.target_NL, settings.draws, axis=0)
    kinds_RL = _kinds(input_RL, target_RL, mask)
    rows = ResponseArrays(
        input_NL=input_RL,
        target_NL=target_RL,
        kinds_NL=kinds_RL,
        regions_NL=visible_regions(_regions(revised, tokenizer, ground), kinds_RL, settings.draws),
        t_N=((kinds_RL == TokenKind.MASK).sum(axis=1) / max(kinds_RL.shape[1], 1)).astype(np.float32),
    )
    meta = _meta(revised.frame, settings.draws, grounded=ground is not None)
    return Corrupted(
        examples=assemble(meta, _prompts(revised.frame, settings.draws), rows, recipe="refine"),
        rejects=revised.rejects,
        rows_in=revised.rows_in,
        rows_ok=revised.frame.height,
    )


def _inputs(revised: Revised, mask: int, seed: int, scope: RefineScope, settings: RefineSettings) -> NDArray[np.int32]:
    """What the model sees, (R, L): the draft, or a state after at least one step of its decoding and before the last.

    Under scope `mistakes` a state that shows no mistake would teach nothing: the draft stands in for it.
    """
    draft_NL, target_NL = revised.draft_NL, revised.target_NL
    if settings.input == "published":
        return np.repeat(draft_NL, settings.draws, axis=0)
    decodings = read_decodings(draft_NL, revised.frame["writes"], mask)
    keys_N = stream_keys(("refine", seed), revised.frame["draft_id"].to_list())
    inputs = []
    for draw in range(settings.draws):
        share_N = uniforms(keys_N, 1, salt=draw * _PURPOSES + _SHARE)[:, 0]
        step_N = uniforms(keys_N, 1, salt=draw * _PURPOSES + _STEP)[:, 0]
        inner_N = np.maximum(decodings.steps_N - 1, 0)
        state_NL = decodings.states(1 + (step_N * inner_N).astype(np.int64))
        partial_N = (share_N < settings.trajectory_share) & (inner_N > 0)
        if scope == "mistakes":
            partial_N &= ((state_NL != target_NL) & (state_NL != mask)).any(axis=1)
        inputs.append(np.where(partial_N[:, None], state_NL, draft_NL))
    return np.stack(inputs, axis=1).reshape(len(draft_NL) * settings.draws, draft_NL.shape[1])


def _kinds(input_RL: NDArray[np.int32], target_RL: NDArray[np.int32], mask: int) -> NDArray[np.int8]:
    kinds_RL = np.where(input_RL == target_RL, np.int8(TokenKind.CLEAN), np.int8(TokenKind.MISTAKE))
    return np.where(input_RL == mask, np.int8(TokenKind.MASK), kinds_RL).astype(np.int8)


def _regions(revised: Revised, tokenizer: PreTrainedTokenizerBase, ground: Ground | None) -> NDArray[np.int16] | None:
    """The image region of each target token, (N, L); -1 where the text does not encode back to the target's ids."""
    if ground is None:
        return None
    regions_NL = np.full(revised.target_NL.shape, -1, dtype=np.int16)
    references = revised.frame["reference"].to_list()
    texts = revised.frame.select(pl.coalesce("refined_text", "text")).to_series().to_list()
    spans = [ground(reference, text) for reference, text in zip(references, texts, strict=True)]
    grounded = [row for row, found in enumerate(spans) if found]  # in most worlds none: nothing is encoded
    if not grounded:
        return regions_NL
    encoded = encode_responses(tokenizer, [texts[row] for row in grounded], revised.target_NL.shape[1])
    same_G = (encoded.ids_NL == revised.target_NL[grounded]).all(axis=1)
    column = pl.Series([list(spans[row]) for row in grounded], dtype=Samples.create_empty().schema["grounding"])
    found_GL = token_regions(column, encoded.start_NL, encoded.end_NL)
    regions_NL[grounded] = np.where(same_G[:, None], found_GL, np.int16(-1))
    return regions_NL


def _meta(frame: pl.DataFrame, draws: int, *, grounded: bool) -> pl.DataFrame:
    """The columns of `draws` examples a draft, next to each other."""
    repeated = frame.select(
        "draft_id", "sample_id", "image_sha", "round", grounded=pl.lit(grounded), parents=pl.concat_list("draft_id")
    )[np.repeat(np.arange(frame.height), draws)]
    draw = pl.Series(np.tile(np.arange(draws), frame.height))
    return repeated.with_columns(example_id=pl.format("{}/refine/{}", "draft_id", draw), origin=pl.lit("draft"))


def _prompts(frame: pl.DataFrame, draws: int) -> Prompts:
    """The drafts' prompts as the model saw them, each distinct one once."""
    distinct = frame.select("prompt_ids").unique(maintain_order=True).with_row_index("index")
    index = frame.join(distinct, on="prompt_ids", how="left", maintain_order="left")["index"]
    ids = [row.to_numpy().astype(np.int32) for row in distinct["prompt_ids"]]
    index_N = np.repeat(index.to_numpy().astype(np.int64), draws)
    return Prompts(ids_P=ids, index_N=index_N, reason_P=[None] * len(ids))
