"""What the model wrote, and how."""

from typing import ClassVar

import dataframely as dy

from data_contracts.contract import Contract


class Drafts(Contract):
    """One draft a row: token ids, text and offsets are computed here, once; no later stage matches text again."""

    table: ClassVar[str] = "drafts"
    id_column: ClassVar[str] = "draft_id"

    draft_id = dy.String(primary_key=True)
    sample_id = dy.String()
    image_sha = dy.String(nullable=True)
    prompt = dy.String(min_length=1)
    reference = dy.String(min_length=1)
    prompt_ids = dy.List(dy.Int32(), description="ids of the prompt as the model saw it, without image positions")
    token_ids = dy.List(dy.Int32(), min_length=1, description="the whole response, end-of-text fill included")
    text = dy.String(description="the response up to its first end-of-text token")
    char_start = dy.List(dy.Int32(), description="per token of the response: first char in `text`; -1 past its end")
    char_end = dy.List(dy.Int32(), description="per token of the response: char after the last; -1 past its end")
    writes = dy.List(
        dy.Struct({"step": dy.Int16(), "position": dy.Int32(), "token": dy.Int32()}),
        description="every reveal, overwrite and re-mask in order: replaying them gives any state of the decoding",
    )
    setting = dy.String(description="decoder setting, e.g. '8+4 refine'")
    tokens_per_step = dy.Int32(min=1)
    extra_steps = dy.Int32(min=0)
    policy = dy.String()
    nfe = dy.Int32(min=1, description="number of function evaluations: forwards of the model")
    model_digest = dy.String()
    round = dy.Int16(min=0)
