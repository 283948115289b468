"""What prompt and image positions may see: everything ("full"), or nothing of the response ("prefix").

With "prefix" the keys and values of the prompt do not depend on the response, so decoding computes them once. The
checkpoint says it: `prompt_attention` in config.json, a key that published code passes over; absent means full.

Shapes: B rows, T positions.
"""

from collections.abc import Mapping
from typing import Any, cast, get_args

import torch
from torch import Tensor

from core.errors import InputError
from core.models.settings import PromptAttention

KEY = "prompt_attention"


def prompt_attention_of(config: Mapping[str, Any]) -> PromptAttention:
    """What a config.json says.

    Raises:
        InputError: if it is neither of the two.
    """
    found = config.get(KEY, "full")
    if found not in get_args(PromptAttention):
        raise InputError(f"config.json: {KEY} = {found!r}, but it is one of {', '.join(get_args(PromptAttention))}")
    return cast(PromptAttention, found)


def with_prompt_attention(config: Mapping[str, Any], wanted: PromptAttention) -> dict[str, Any]:
    """The config.json that says `wanted`; one that never had the key keeps its words if that is full."""
    if wanted == prompt_attention_of(config):
        return dict(config)
    return {key: value for key, value in config.items() if key != KEY} | ({KEY: wanted} if wanted == "prefix" else {})


def prompt_needed(prompt: Tensor | None) -> Tensor:
    """`prompt`, without which prefix attention is not defined. Raises InputError if it is None."""
    if prompt is None:
        raise InputError("this model's prompt does not attend to the response: it must be told which tokens are prompt")
    return prompt


def prefix_seen(valid_BT: Tensor, response_BT: Tensor) -> Tensor:
    """(B, T, T) bool: which key (last axis) a query sees. A response sees all valid keys, all else only the prompt's.

    Padding sees everything valid, so that no query is left without a key.
    """
    prompt_BT = valid_BT & ~response_BT
    return torch.where(prompt_BT[:, :, None], prompt_BT[:, None, :], valid_BT[:, None, :])
